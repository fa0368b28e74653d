//! A container's environment, command and arguments, planned from the spec and the objects it refers to.

pub(crate) mod downward;
pub(crate) mod expansion;
pub(crate) mod file;
pub(crate) mod link;

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, EnvVarSource, FileKeySelector, Pod};

use crate::object::{MissingObject, Snapshot};
use crate::quantity::Amounts;
use downward::{DownwardError, PodAddresses};
use file::{EnvFiles, ReadError, find_value};
use link::{LinkPort, Links, link_variables, plan_links};

/// Where Pods reach the API: what `KUBERNETES_SERVICE_*` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiService {
    /// The service's address as Pods see it, usually `10.96.0.1`.
    pub host: String,
    /// The service's port as Pods see it, usually 443.
    pub port: u16,
}

/// What the environment of one container is planned from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EnvInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) addresses: &'a PodAddresses,
    pub(crate) objects: &'a Snapshot,
    pub(crate) api_service: &'a ApiService,
    pub(crate) allocatable: &'a Amounts,
    /// The cluster's Services.
    pub(crate) links: &'a Links,
    /// The files that the container's variables refer to.
    pub(crate) files: &'a EnvFiles,
}

/// The planned environment, and the keys that could not become variable names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) skipped: Vec<SkippedKeys>,
}

/// Keys of an `envFrom` source that are no variable names; reported as an event, never fatal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SkippedKeys {
    pub(crate) keys: Vec<String>,
    pub(crate) kind: &'static str,
    pub(crate) object: String,
}

/// Why a container's environment cannot be made. Shown as `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EnvError {
    #[error(transparent)]
    MissingObject(#[from] MissingObject),
    #[error("couldn't find key {key} in {kind} {object}")]
    MissingKey { key: String, kind: &'static str, object: String },
    #[error(transparent)]
    Downward(#[from] DownwardError),
    #[error("variable {variable}: {cause}")]
    File { variable: String, cause: String },
    #[error("environment variable key {key:?} not found in file {path:?} of the volume {volume:?}")]
    MissingFileKey { key: String, path: String, volume: String },
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    /// The value of a variable, if it is set.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Plans the variables of `container` in upstream's order: `envFrom`, `env`, then service variables not yet set.
pub(crate) fn plan_environment(input: EnvInput<'_>, container: &Container) -> Result<Environment, EnvError> {
    let mut environment = Environment::default();
    for source in container.env_from.iter().flatten() {
        add_source(input, source, &mut environment)?;
    }
    let services = plan_services(input);
    for variable in container.env.iter().flatten() {
        if let Some(value) = resolve(input, container, variable, &environment, &services)? {
            environment.set(&variable.name, value);
        }
    }
    for (name, value) in services {
        if environment.get(&name).is_none() {
            environment.set(&name, value);
        }
    }
    Ok(environment)
}

/// The command or arguments with `$(NAME)` references to the environment expanded.
pub(crate) fn plan_arguments(arguments: Option<&Vec<String>>, environment: &Environment) -> Vec<String> {
    let lookup = |name: &str| environment.get(name).map(str::to_owned);
    arguments.into_iter().flatten().map(|argument| expansion::expand(argument, lookup)).collect()
}

/// The variables that tell a Pod where the API is, and those of its namespace's Services unless it wants none. A Service
/// of the namespace that is called `kubernetes` counts before the API's own.
fn plan_services(input: EnvInput<'_>) -> Vec<(String, String)> {
    let wants_links = input.pod.spec.as_ref().is_none_or(|spec| spec.enable_service_links != Some(false));
    let namespace = input.pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut variables = if wants_links { plan_links(input.links, namespace) } else { Vec::new() };
    if !variables.iter().any(|(name, _)| name == "KUBERNETES_SERVICE_HOST") {
        variables.extend(api_variables(input.api_service));
    }
    variables
}

/// The variables of the API's own Service, as the node agent was told where Pods reach it.
fn api_variables(service: &ApiService) -> Vec<(String, String)> {
    let (name, protocol) = ("https".to_owned(), "TCP".to_owned());
    let port = LinkPort { name, protocol, port: i64::from(service.port) };
    link_variables("kubernetes", &service.host, &[port])
}

fn add_source(input: EnvInput<'_>, source: &EnvFromSource, out: &mut Environment) -> Result<(), EnvError> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    if let Some(reference) = &source.config_map_ref {
        match input.objects.config_map(&reference.name) {
            Ok(map) => {
                let data = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.clone()));
                add_keys(input, ("configMap", &reference.name), prefix, data, out);
            }
            Err(_) if reference.optional == Some(true) => {}
            Err(missing) => return Err(missing.into()),
        }
    }
    if let Some(reference) = &source.secret_ref {
        match input.objects.secret(&reference.name) {
            Ok(secret) => {
                let data = secret.data.iter().flatten();
                let data =
                    data.map(|(key, value)| (key.as_str(), String::from_utf8_lossy(&value.0).into_owned()));
                add_keys(input, ("secret", &reference.name), prefix, data, out);
            }
            Err(_) if reference.optional == Some(true) => {}
            Err(missing) => return Err(missing.into()),
        }
    }
    Ok(())
}

fn add_keys<'a>(
    input: EnvInput<'_>,
    (kind, name): (&'static str, &str),
    prefix: &str,
    data: impl Iterator<Item = (&'a str, String)>,
    out: &mut Environment,
) {
    let mut skipped = Vec::new();
    for (key, value) in data {
        let variable = format!("{prefix}{key}");
        if is_variable_name(&variable) {
            out.set(&variable, value);
        } else {
            skipped.push(variable);
        }
    }
    if !skipped.is_empty() {
        let object = format!("{}/{name}", input.pod.metadata.namespace.as_deref().unwrap_or_default());
        out.skipped.push(SkippedKeys { keys: skipped, kind, object });
    }
}

/// Printable ASCII without `=`, as the API accepts since v1.34.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..=0x7e).contains(&b) && b != b'=')
}

fn resolve(
    input: EnvInput<'_>,
    container: &Container,
    variable: &EnvVar,
    known: &Environment,
    services: &[(String, String)],
) -> Result<Option<String>, EnvError> {
    if let Some(source) = &variable.value_from {
        return resolve_source(input, container, &variable.name, source);
    }
    let service =
        |name: &str| services.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let lookup = |name: &str| known.get(name).map(str::to_owned).or_else(|| service(name));
    Ok(Some(expansion::expand(variable.value.as_deref().unwrap_or_default(), lookup)))
}

fn resolve_source(
    input: EnvInput<'_>,
    container: &Container,
    variable: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let object =
        |name: &str| format!("{}/{name}", input.pod.metadata.namespace.as_deref().unwrap_or_default());
    if let Some(field) = &source.field_ref {
        return Ok(Some(downward::env_field(input.pod, input.addresses, &field.field_path)?));
    }
    if let Some(selector) = &source.resource_field_ref {
        let value = downward::resource_field(input.pod, Some(&container.name), selector, input.allocatable)?;
        return Ok(Some(value));
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let map = match input.objects.config_map(&key.name) {
            Err(_) if optional => return Ok(None),
            other => other?,
        };
        let value = map.data.as_ref().and_then(|data| data.get(&key.key)).cloned();
        return found_or(value, optional, &key.key, "ConfigMap", object(&key.name));
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let secret = match input.objects.secret(&key.name) {
            Err(_) if optional => return Ok(None),
            other => other?,
        };
        let value = secret.data.as_ref().and_then(|data| data.get(&key.key));
        let value = value.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        return found_or(value, optional, &key.key, "Secret", object(&key.name));
    }
    if let Some(reference) = &source.file_key_ref {
        return resolve_file_key(input.files, variable, reference);
    }
    Ok(Some(String::new()))
}

/// The value that an env file gives the variable; `None` when it is optional and not there.
fn resolve_file_key(
    files: &EnvFiles,
    variable: &str,
    reference: &FileKeySelector,
) -> Result<Option<String>, EnvError> {
    let FileKeySelector { key, path, volume_name: volume, .. } = reference;
    let failed = |cause: String| EnvError::File { variable: variable.to_owned(), cause };
    let is_optional = reference.optional == Some(true);
    let text = match files.get(&(volume.clone(), path.clone())) {
        Some(Ok(text)) => text,
        Some(Err(ReadError::Absent(_))) if is_optional => return Ok(None),
        Some(Err(error)) => return Err(failed(error.to_string())),
        None => return Err(failed(ReadError::NoVolume(volume.clone()).to_string())),
    };
    let found =
        find_value(text, key).map_err(|error| failed(format!("couldn't parse env file: {path}: {error}")))?;
    if found.is_none() && !is_optional {
        let (key, path, volume) = (key.clone(), path.clone(), volume.clone());
        return Err(EnvError::MissingFileKey { key, path, volume });
    }
    Ok(found)
}

fn found_or(
    value: Option<String>,
    optional: bool,
    key: &str,
    kind: &'static str,
    object: String,
) -> Result<Option<String>, EnvError> {
    match value {
        Some(value) => Ok(Some(value)),
        None if optional => Ok(None),
        None => Err(EnvError::MissingKey { key: key.to_owned(), kind, object }),
    }
}

#[cfg(test)]
mod tests;
