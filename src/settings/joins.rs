//! Checks of `[[join]]`.

use super::addresses::{parse_group, parse_source};
use super::checker::Checker;
use super::key_path::KeyPath;
use super::raw::RawJoin;
use crate::model::rule::MAX_JOINED_GROUPS;
use crate::model::{GroupPrefix, JoinRule, Origin};

/// Checks all joins. Returns those that could be built; problems go to `checker`.
pub(super) fn check_joins(
    checker: &mut Checker<'_>,
    raw: impl Iterator<Item = Option<RawJoin>>,
) -> Vec<JoinRule> {
    let mut joins = Vec::new();
    for (index, raw) in raw.enumerate() {
        let Some(raw) = raw else { continue };
        let path = KeyPath::root("join").index(index);
        let interface = checker.required(raw.interface, &path, "interface");
        let group = checker.required(raw.group, &path, "group");
        let interface = interface.and_then(|name| checker.pattern(&path.key("interface"), &name));
        let group_path = path.key("group");
        let group = group
            .and_then(|text| parse_group(checker, &group_path, &text))
            .filter(|group| check_group_count(checker, &group_path, *group));
        let source_path = path.key("source");
        let source = match &raw.source {
            None => Some(None),
            Some(text) => parse_source(checker, &source_path, text, group).and_then(|source| {
                let single = source.single();
                if single.is_none() {
                    let help = "A join has one source. Write a [[join]] for each source.";
                    checker.refuse(&source_path, source.to_string(), "one source", help);
                }
                single.map(Some)
            }),
        };
        if let (Some(interface), Some(group), Some(source)) = (interface, group, source) {
            joins.push(JoinRule {
                interface,
                source,
                group,
                origin: Origin::Settings,
            });
        }
    }
    joins
}

/// Checks that a prefix has at most [`MAX_JOINED_GROUPS`] groups.
pub(super) fn check_group_count(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    group: GroupPrefix,
) -> bool {
    let is_good = group.count() <= MAX_JOINED_GROUPS;
    if !is_good {
        checker.refuse(
            path,
            format!("a join of every group in {group}"),
            format!("at most {MAX_JOINED_GROUPS} groups"),
            "Each group is joined separately. Use a longer prefix, or list the groups you need.",
        );
    }
    is_good
}
