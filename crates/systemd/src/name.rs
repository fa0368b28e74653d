//! Names of slices, and where their groups lie. Pure. Source: `systemd.slice(5)`.
//!
//! A dash in a slice's name is a step down: `a-b.slice` lies in `a.slice`.

const SUFFIX: &str = ".slice";

/// A slice's name, e.g. `kubepods-burstable-pod1.slice`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice(String);

impl Slice {
    /// Reads a unit's name; `None` if it is no slice's that can hold anything.
    pub fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(SUFFIX)?;
        let is_good = |c: char| c.is_ascii_alphanumeric() || "-_:.\\".contains(c);
        let steps_are_whole = stem.split('-').all(|step| !step.is_empty());
        (steps_are_whole && stem.chars().all(is_good) && name.len() <= 255).then(|| Self(name.to_owned()))
    }

    /// The slice of a group's path: `/kubepods/burstable/pod1-2` is `kubepods-burstable-pod1_2.slice`. The steps of the
    /// path are those of the name, so dashes become underscores, as upstream writes them.
    pub fn of_path(path: &str) -> Option<Self> {
        let steps: Vec<String> =
            path.split('/').filter(|step| !step.is_empty()).map(|step| step.replace('-', "_")).collect();
        Self::parse(&format!("{}{SUFFIX}", steps.join("-")))
    }

    /// The unit's name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The group's path below the mount point, with all slices above it.
    pub fn group(&self) -> String {
        let stem = self.0.strip_suffix(SUFFIX).unwrap_or(&self.0);
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        let steps = ends.filter_map(|end| stem.get(..end));
        steps.flat_map(|step| ["/", step, SUFFIX]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lies_in_those_that_its_name_begins_with() {
        let slice = Slice::parse("kubepods-burstable-pod1_2.slice").unwrap();
        assert_eq!(slice.group(), "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice");
        assert_eq!(Slice::of_path("/kubepods/burstable/pod1-2"), Some(slice));
        assert_eq!(Slice::parse("a.slice").unwrap().group(), "/a.slice");
    }

    #[test]
    fn what_is_no_slice_is_not_taken_for_one() {
        for name in
            ["", ".slice", "-.slice", "a--b.slice", "-a.slice", "a-.slice", "/a.slice", "a.scope", "/a/b"]
        {
            assert_eq!(Slice::parse(name), None, "{name}");
        }
        assert_eq!(Slice::of_path("/"), None);
    }
}
