//! Merges a container's `command`, `args`, environment and working directory with its image's.

use std::collections::BTreeMap;

/// What `PATH` is when neither the request nor the image sets it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no command specified: neither the container nor its image {image} says what to run; set `command`")]
pub(crate) struct NoCommand {
    pub(crate) image: String,
}

/// The argument vector: `command` replaces the image's entrypoint and with it its `cmd`; `args` replaces `cmd`
/// (Kubernetes documentation, "Define a Command and Arguments for a Container").
pub(crate) fn merge_command(
    command: &[String],
    args: &[String],
    image: &ImageCommand,
) -> Result<Vec<String>, NoCommand> {
    let (entrypoint, arguments) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command, args),
        (true, false) => (&image.entrypoint[..], args),
        (true, true) => (&image.entrypoint[..], &image.cmd[..]),
    };
    let merged: Vec<String> = entrypoint.iter().chain(arguments).cloned().collect();
    if merged.is_empty() { Err(NoCommand { image: image.name.clone() }) } else { Ok(merged) }
}

/// The parts of an image that decide what it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageCommand {
    pub(crate) name: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
}

/// The environment as `NAME=value`, in a stable order: the image's, then what the runtime adds where nothing
/// is set (`PATH`, `HOSTNAME`, `TERM` for a terminal), each overridden by the request's.
pub(crate) fn merge_environment(
    image: &[String],
    request: &[(String, Vec<u8>)],
    defaults: &[(&str, &str)],
) -> Vec<Vec<u8>> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut set = |name: &str, value: Vec<u8>| {
        if values.insert(name.to_owned(), value).is_none() {
            order.push(name.to_owned());
        }
    };
    set("PATH", DEFAULT_PATH.as_bytes().to_vec());
    for (name, value) in defaults {
        set(name, value.as_bytes().to_vec());
    }
    for line in image {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        set(name, value.as_bytes().to_vec());
    }
    for (name, value) in request {
        set(name, value.clone());
    }
    let line = |name: &String| {
        let value = values.get(name).map_or(&[][..], Vec::as_slice);
        [name.as_bytes(), b"=", value].concat()
    };
    order.iter().map(line).collect()
}

/// The directory the process starts in: the request's, else the image's, else `/`.
pub(crate) fn working_directory(request: &str, image: Option<&str>) -> String {
    [request, image.unwrap_or_default(), "/"]
        .into_iter()
        .find(|path| !path.is_empty())
        .unwrap_or("/")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// The table of the Kubernetes documentation.
    #[test]
    fn command_and_args_replace_entrypoint_and_cmd_as_documented() {
        let image = ImageCommand { name: "img".into(), entrypoint: words("/ep-1"), cmd: words("foo bar") };
        let merged = |command, args| merge_command(&words(command), &words(args), &image).unwrap().join(" ");
        assert_eq!(merged("", ""), "/ep-1 foo bar");
        assert_eq!(merged("/ep-2", ""), "/ep-2");
        assert_eq!(merged("", "zoo boo"), "/ep-1 zoo boo");
        assert_eq!(merged("/ep-2", "zoo boo"), "/ep-2 zoo boo");
    }

    #[test]
    fn nothing_to_run_names_the_image() {
        let image = ImageCommand { name: "scratch:1".into(), ..ImageCommand::default() };
        assert!(merge_command(&[], &[], &image).unwrap_err().to_string().contains("scratch:1"));
    }

    #[test]
    fn the_request_overrides_the_image_which_overrides_the_runtime() {
        let image = words("PATH=/img A=1 B=2");
        let request = vec![("B".to_owned(), b"\xff".to_vec()), ("C".to_owned(), b"3=x".to_vec())];
        let merged = merge_environment(&image, &request, &[("HOSTNAME", "pod"), ("A", "0")]);
        let expected: [&[u8]; 5] = [b"PATH=/img", b"HOSTNAME=pod", b"A=1", b"B=\xff", b"C=3=x"];
        assert_eq!(merged, expected);
    }

    #[test]
    fn the_working_directory_is_the_requests_then_the_images_then_root() {
        assert_eq!(working_directory("/r", Some("/i")), "/r");
        assert_eq!(working_directory("", Some("/i")), "/i");
        assert_eq!(working_directory("", Some("")), "/");
        assert_eq!(working_directory("", None), "/");
    }
}
