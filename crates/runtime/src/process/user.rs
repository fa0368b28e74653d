//! Who a container's process is: the request's user, else the image's, looked up in the `passwd` and `group`
//! files of the root filesystem. The files are read inside that root only, so that a link in the image can't
//! point at the node's.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::fd::BorrowedFd;

use cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use crate::mapping::PodIds;

/// Bytes of `passwd` or `group` that are read at most (16 MiB).
const FILE_LIMIT: u64 = 16 << 20;

/// IDs inside the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, sorted, without repetition.
    pub(crate) groups: Vec<u32>,
    /// The home directory, `/` when unknown.
    pub(crate) home: String,
}

/// Why the user can't be worked out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("the user {0:?} is not in the image's /etc/passwd; use a number or add the user to the image")]
    NoUser(String),
    #[error("the group {0:?} is not in the image's /etc/group; use a number or add the group to the image")]
    NoGroup(String),
    #[error("run_as_group {0} is set without a user; set run_as_user too")]
    GroupWithoutUser(i64),
    #[error("{what} {id} is no ID; IDs are 0 to 4294967294")]
    Range { what: &'static str, id: i64 },
    #[error(
        "{what} {id} is outside the Pod's user namespace, which maps {length} IDs (0-{last}) from host ID {host}; \
         choose a lower ID or raise `userNamespaces.idsPerPod` in the kubelet's configuration"
    )]
    Unmapped { what: &'static str, id: u32, host: u32, length: u32, last: u32 },
    #[error("read {path} in the root filesystem: {source}")]
    Read { path: &'static str, source: std::io::Error },
}

/// The two files' text.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

impl Accounts {
    /// Reads both files of the filesystem at `root`. Absent files are empty.
    pub(crate) fn read(root: BorrowedFd<'_>) -> Result<Self, UserError> {
        Ok(Self { passwd: read_inside(root, "/etc/passwd")?, group: read_inside(root, "/etc/group")? })
    }

    fn user(&self, name_or_id: &str) -> Option<PasswdLine<'_>> {
        let id = name_or_id.parse::<u32>().ok();
        let lines = || self.passwd.lines().filter_map(PasswdLine::parse);
        lines().find(|line| line.name == name_or_id).or_else(|| lines().find(|line| Some(line.uid) == id))
    }

    fn group(&self, name_or_id: &str) -> Option<u32> {
        let by_name = self.groups().find(|group| group.name == name_or_id).map(|group| group.gid);
        by_name.or_else(|| name_or_id.parse().ok())
    }

    fn groups(&self) -> impl Iterator<Item = GroupLine<'_>> {
        self.group.lines().filter_map(GroupLine::parse)
    }

    fn memberships<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.groups().filter(move |group| group.has(user)).map(|group| group.gid)
    }
}

/// Works out the user: `run_as_user`, else `run_as_username`, else the image's `USER`.
pub(crate) fn resolve(
    context: &LinuxContainerSecurityContext,
    image_user: &str,
    accounts: &Accounts,
) -> Result<User, UserError> {
    let (user, group) = names(context, image_user)?;
    let line = accounts.user(&user);
    let uid = match &line {
        Some(line) => line.uid,
        None => user.parse().map_err(|_| UserError::NoUser(user.clone()))?,
    };
    let own_group = line.as_ref().map_or(0, |line| line.gid);
    let gid = match group {
        Some(group) => accounts.group(&group).ok_or(UserError::NoGroup(group))?,
        None => own_group,
    };
    let mut groups = BTreeSet::new();
    let is_strict = context.supplemental_groups_policy == i32::from(SupplementalGroupsPolicy::Strict);
    if let (Some(line), false) = (&line, is_strict) {
        groups.extend(accounts.memberships(line.name));
    }
    for group in &context.supplemental_groups {
        groups.insert(id("supplemental group", *group)?);
    }
    groups.insert(gid);
    let home = line.as_ref().map_or("", |line| line.home);
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    Ok(User { uid, gid, groups: groups.into_iter().collect(), home })
}

/// Refuses IDs that the Pod's user namespace doesn't hold (the kernel would say EINVAL without naming one).
pub(crate) fn check_mapped(user: &User, ids: Option<PodIds>) -> Result<(), UserError> {
    let Some(ids) = ids else { return Ok(()) };
    let check = |what, id: u32, map: crate::mapping::IdMap| match map.host_id(id) {
        Some(_) => Ok(()),
        None => {
            Err(UserError::Unmapped { what, id, host: map.host, length: map.length, last: map.length - 1 })
        }
    };
    check("user", user.uid, ids.uids)?;
    check("group", user.gid, ids.gids)?;
    user.groups.iter().try_for_each(|group| check("supplemental group", *group, ids.gids))
}

/// The user and, where one is named, the group, as text.
fn names(
    context: &LinuxContainerSecurityContext,
    image_user: &str,
) -> Result<(String, Option<String>), UserError> {
    let group = match &context.run_as_group {
        Some(group) => Some(id("run_as_group", group.value)?.to_string()),
        None => None,
    };
    if let Some(user) = &context.run_as_user {
        return Ok((id("run_as_user", user.value)?.to_string(), group));
    }
    if !context.run_as_username.is_empty() {
        return Ok((context.run_as_username.clone(), group));
    }
    if let Some(group) = &context.run_as_group {
        return Err(UserError::GroupWithoutUser(group.value));
    }
    let (user, group) =
        image_user.split_once(':').map_or((image_user, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    Ok((user.to_owned(), group.filter(|group| !group.is_empty()).map(str::to_owned)))
}

fn id(what: &'static str, id: i64) -> Result<u32, UserError> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(UserError::Range { what, id })
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdLine<'a> {
    /// `name:password:uid:gid:gecos:home:shell` (passwd(5)).
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupLine<'a> {
    /// `name:password:gid:members` (group(5)).
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }

    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

fn read_inside(root: BorrowedFd<'_>, path: &'static str) -> Result<String, UserError> {
    let error = |source| UserError::Read { path, source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok(String::new());
        }
        Err(errno) => return Err(error(errno.into())),
    };
    if !file.metadata().map_err(error)?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes).map_err(error)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use cri::v1::Int64Value;

    use super::*;
    use crate::mapping::IdMap;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/false\n# junk\n7:x:99:98::/seven:\n"
                .into(),
            group: "root:x:0:\nwww:x:33:\nadm:x:4:www,root\nweb:x:50:www\n".into(),
        }
    }

    fn context(user: Option<i64>, group: Option<i64>) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            run_as_user: user.map(|value| Int64Value { value }),
            run_as_group: group.map(|value| Int64Value { value }),
            ..LinuxContainerSecurityContext::default()
        }
    }

    fn resolved(context: &LinuxContainerSecurityContext, image: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(context, image, &accounts()).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn an_image_without_user_runs_as_root_with_roots_groups() {
        assert_eq!(resolved(&context(None, None), ""), (0, 0, vec![0, 4], "/root".into()));
    }

    #[test]
    fn the_images_user_may_be_a_name_a_number_or_a_pair() {
        assert_eq!(resolved(&context(None, None), "www"), (33, 33, vec![4, 33, 50], "/var/www".into()));
        assert_eq!(resolved(&context(None, None), "33"), (33, 33, vec![4, 33, 50], "/var/www".into()));
        assert_eq!(resolved(&context(None, None), "www:web").1, 50);
        assert_eq!(resolved(&context(None, None), "1234:4321"), (1234, 4321, vec![4321], "/".into()));
        assert_eq!(resolved(&context(None, None), "7").0, 99, "a name made of digits is a name first");
    }

    #[test]
    fn the_request_wins_over_the_image() {
        assert_eq!(resolved(&context(Some(1000), None), "www"), (1000, 0, vec![0], "/".into()));
        assert_eq!(resolved(&context(Some(33), Some(50)), "").1, 50);
        let named = LinuxContainerSecurityContext { run_as_username: "www".into(), ..context(None, None) };
        assert_eq!(resolved(&named, "").0, 33);
    }

    #[test]
    fn the_strict_policy_takes_only_the_groups_of_the_request() {
        let mut strict = context(Some(33), None);
        strict.supplemental_groups = vec![2000, 2000];
        assert_eq!(resolved(&strict, "").2, [4, 33, 50, 2000]);
        strict.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
        assert_eq!(resolved(&strict, "").2, [33, 2000]);
    }

    #[test]
    fn what_is_unknown_or_no_id_is_named() {
        let message = |context: &_, image| resolve(context, image, &accounts()).unwrap_err().to_string();
        assert!(message(&context(None, None), "nobody").contains("\"nobody\""));
        assert!(message(&context(None, None), "www:none").contains("\"none\""));
        assert!(message(&context(Some(-1), None), "").contains("-1"));
        assert!(message(&context(Some(4_294_967_295), None), "").contains("4294967295"));
        assert!(message(&context(None, Some(5)), "").contains("run_as_group 5"));
    }

    #[test]
    fn an_id_outside_the_pods_map_is_named_with_the_map_and_a_remedy() {
        let map = IdMap { host: 131_072, length: 65_536 };
        let ids = Some(PodIds { uids: map, gids: map });
        let user = |uid, group| User { uid, groups: vec![group], ..User::default() };
        let message = check_mapped(&user(70_000, 0), ids).unwrap_err().to_string();
        assert!(message.contains("70000") && message.contains("131072") && message.contains("idsPerPod"));
        check_mapped(&user(0, 70_000), ids).unwrap_err();
        check_mapped(&user(65_535, 65_535), ids).unwrap();
        check_mapped(&user(70_000, 70_000), None).unwrap();
    }

    #[test]
    fn a_link_in_the_image_stays_in_the_image() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/group", root.path().join("etc/group")).unwrap();
        let directory = std::fs::File::open(root.path()).unwrap();
        let accounts = Accounts::read(directory.as_fd()).unwrap();
        assert_eq!((accounts.passwd.as_str(), accounts.group.as_str()), ("", ""));
    }
}
