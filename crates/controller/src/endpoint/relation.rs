//! Which objects belong to which Services (Pods that it selects, slices that name it), looked up from both sides.

use std::collections::BTreeSet;

/// Pairs of a Service's key and a member's key.
#[derive(Debug, Default)]
pub(crate) struct Relation {
    by_service: BTreeSet<(String, String)>,
    by_member: BTreeSet<(String, String)>,
}

impl Relation {
    /// The members of a Service.
    pub(crate) fn members(&self, service: &str) -> impl Iterator<Item = &str> {
        of(&self.by_service, service)
    }

    /// Gives a member its Services; answers those that gain or keep or lose it.
    pub(crate) fn set_services(&mut self, member: &str, services: &BTreeSet<String>) -> BTreeSet<String> {
        let former: BTreeSet<String> = of(&self.by_member, member).map(str::to_owned).collect();
        for service in former.difference(services) {
            self.by_member.remove(&(member.to_owned(), service.clone()));
            self.by_service.remove(&(service.clone(), member.to_owned()));
        }
        for service in services {
            self.by_member.insert((member.to_owned(), service.clone()));
            self.by_service.insert((service.clone(), member.to_owned()));
        }
        &former | services
    }

    /// Gives a Service its members.
    pub(crate) fn set_members(&mut self, service: &str, members: BTreeSet<String>) {
        let former: Vec<String> = self.members(service).map(str::to_owned).collect();
        for member in former {
            self.by_service.remove(&(service.to_owned(), member.clone()));
            self.by_member.remove(&(member, service.to_owned()));
        }
        for member in members {
            self.by_service.insert((service.to_owned(), member.clone()));
            self.by_member.insert((member, service.to_owned()));
        }
    }
}

fn of<'a>(pairs: &'a BTreeSet<(String, String)>, key: &str) -> impl Iterator<Item = &'a str> {
    let (key, from) = (key.to_owned(), (key.to_owned(), String::new()));
    pairs.range(from..).take_while(move |(first, _)| *first == key).map(|(_, second)| second.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn both_sides_see_each_change() {
        let mut relation = Relation::default();
        assert_eq!(relation.set_services("d/p", &set(&["d/a", "d/b"])), set(&["d/a", "d/b"]));
        assert_eq!(relation.set_services("d/p", &set(&["d/b", "d/c"])), set(&["d/a", "d/b", "d/c"]));
        assert_eq!(relation.members("d/a").count(), 0);
        assert_eq!(relation.members("d/b").collect::<Vec<_>>(), ["d/p"]);
        relation.set_members("d/b", set(&["d/q"]));
        assert_eq!(relation.set_services("d/p", &set(&[])), set(&["d/c"]));
        assert_eq!(relation.members("d/b").collect::<Vec<_>>(), ["d/q"]);
    }
}
