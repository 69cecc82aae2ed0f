//! Checks of the merge of routes, `merge`.

use super::addresses::{parse_group, parse_source};
use super::checker::Checker;
use super::key_path::KeyPath;
use super::raw::{MERGE_FORMS, RawMerge, RawMergeBy};
use super::words::did_you_mean;
use crate::model::{
    IfPattern, MergeBy, MergePath, MergeRule, RouteRule, SourcePrefix, TranslationError,
    TranslationRule,
};

/// Refuses a key that has no meaning in a route with a merge.
pub(super) fn refuse_with_merge(checker: &mut Checker<'_>, route: &KeyPath, key: &str) {
    let texts = (
        format!("`{key}` in a route with `merge`"),
        format!("no `{key}`"),
        "Both paths of a merge are forwarded all the time. Remove the key.",
    );
    checker.refuse_related(&route.key(key), texts, (&route.key("merge"), "the merge"));
}

/// Checks the merge of the route at `route`, of which `rule` is the rule without it. Returns the
/// rules of both paths.
pub(super) fn check_merge(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    raw: RawMerge,
    rule: RouteRule,
) -> Option<Vec<RouteRule>> {
    let path = route.key("merge");
    let with = checker.required(raw.with, &path, "with");
    let with = with.and_then(|text| checker.pattern(&path.key("with"), &text));
    let with = with.filter(|with| is_good_interface(checker, route, with, &rule));
    let window = checker.duration_or_default(&path.key("window"), raw.window);
    let by = match raw.by {
        None => Some(MergeBy::Rtp),
        Some(by) => check_by(checker, &path.key("by"), by),
    };
    let group = match raw.group {
        None => Some(rule.group),
        Some(text) => parse_group(checker, &path.key("group"), &text),
    };
    let has_own_source = raw.source.is_some();
    let source = match (raw.source, group) {
        (Some(text), group) => parse_source(checker, &path.key("source"), &text, group),
        (None, Some(_)) => Some(rule.source),
        (None, None) => None,
    };
    let keeps_version = |t: TranslationRule| t.kind().keeps_ip_version();
    if !rule.translation.is_none_or(keeps_version) {
        let texts = (
            "a translation to the other IP version in a route with `merge`",
            "packets that keep their IP version",
            "Merge the paths in one router and translate in another, or translate the port, or \
             addresses of the same IP version, only.",
        );
        checker.refuse_related(&route.key("rewrite"), texts, (&path, "the merge"));
        return None;
    }
    let (with, by, source, group) = (with?, by?, source?, group?);
    let to_first = match translation_of_copies(&rule, (source, group)) {
        Ok(translation) => translation,
        Err(error) => {
            let key = match has_own_source {
                true => "source",
                false => "group",
            };
            // In the texts of these errors, "the route" would be the copies.
            let found = match error {
                TranslationError::Collapses { from, to } => {
                    format!("{from}, which has more addresses than {to}")
                }
                TranslationError::Length { from, to } => {
                    format!("{from}, which has fewer addresses than {to}")
                }
                error => format!("copies that cannot leave as the packets of `from`: {error}"),
            };
            checker.refuse(
                &path.key(key),
                found,
                "as many addresses as the route has",
                "Copies leave with the source and the group of the route. Prefixes map one to one.",
            );
            return None;
        }
    };
    let merge = |path: MergePath, with: &IfPattern| MergeRule {
        path,
        with: with.clone(),
        window,
        by,
    };
    let first = RouteRule {
        takeover: None,
        merge: Some(merge(MergePath::First, &with)),
        ..rule
    };
    let second = RouteRule {
        source,
        except_sources: match has_own_source {
            true => Vec::new(),
            false => first.except_sources.clone(),
        },
        group,
        translation: to_first,
        merge: Some(merge(MergePath::Second, &first.from)),
        from: with,
        ..first.clone()
    };
    Some(vec![first, second])
}

/// Returns the translation with which the copies leave as the packets of `rule`.
fn translation_of_copies(
    rule: &RouteRule,
    copies: (SourcePrefix, crate::model::GroupPrefix),
) -> Result<Option<TranslationRule>, TranslationError> {
    let replacements = rule.translation.map(|t| t.replacements());
    let (source, group) = replacements.unwrap_or_default();
    let has_other_source = !rule.source.is_any() && copies.0 != rule.source;
    let source = source.or_else(|| has_other_source.then_some(rule.source));
    let group = group.or_else(|| (copies.1 != rule.group).then_some(rule.group));
    let port = rule.translation.and_then(|t| t.port());
    if source.is_none() && group.is_none() && port.is_none() {
        return Ok(None);
    }
    match TranslationRule::new(copies, (source, group), port, rule.link_local) {
        Ok(translation) => Ok(Some(translation)),
        Err(TranslationError::ChangesNothing) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks the interface on which the copies arrive against those of the route.
fn is_good_interface(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    with: &IfPattern,
    rule: &RouteRule,
) -> bool {
    let path = route.key("merge").key("with");
    let from = route.key("from");
    if !with.is_single() {
        checker.refuse(
            &path,
            format!("{:?}, which may be several interfaces", with.as_str()),
            "the name of one interface",
            "A merge has two paths. Write one route for each pair of interfaces.",
        );
        return false;
    }
    if !rule.from.is_single() {
        let texts = (
            format!("{:?}, which may be several interfaces", rule.from.as_str()),
            "the name of one interface, in a route with `merge`",
            "A merge has two paths: one arrives on `from`, the other one on `with`.",
        );
        checker.refuse_related(&from, texts, (&path, "the other path"));
        return false;
    }
    if *with == rule.from {
        let texts = (
            format!("{with}, the interface of `from`"),
            "another interface",
            "The two paths of a merge arrive on two interfaces. To drop duplicates that arrive on \
             one interface, set loop_guard = true instead.",
        );
        checker.refuse_related(&path, texts, (&from, "the first path"));
        return false;
    }
    if let Some(at) = rule.to.iter().position(|to| to == with) {
        let texts = (
            format!("{with}, on which the route sends"),
            "an interface that is not in `to`",
            "The merged stream would return to the path from which it comes. Remove the interface \
             from one of the two keys.",
        );
        let to = route.key("to").index(at);
        checker.refuse_related(&path, texts, (&to, "an egress"));
        return false;
    }
    true
}

fn check_by(checker: &mut Checker<'_>, path: &KeyPath, by: RawMergeBy) -> Option<MergeBy> {
    let words = [
        ("rtp", MergeBy::Rtp),
        ("sequence", MergeBy::Sequence),
        ("payload", MergeBy::Payload),
    ];
    match by {
        RawMergeBy::Word(word) => {
            let known = words.iter().find(|(known, _)| *known == word);
            if known.is_none() {
                let similar = did_you_mean(&word, words.iter().map(|(known, _)| *known));
                let help = similar.unwrap_or_else(|| {
                    "For another number in the payload, set its place: by = { offset = 4, bytes \
                     = 4 }."
                        .into()
                });
                checker.refuse(path, format!("{word:?}"), MERGE_FORMS, help);
            }
            known.map(|(_, by)| *by)
        }
        RawMergeBy::Field(field) => {
            let offset = checker.required(field.0.offset, path, "offset");
            let bytes = checker.required(field.0.bytes, path, "bytes");
            let offset = checker.named_integer(&path.key("offset"), offset, "an offset", "");
            let help = "A number of one byte wraps too early to tell copies from later packets.";
            let bytes = checker.named_integer(&path.key("bytes"), bytes, "a length", help);
            Some(MergeBy::Field {
                offset: u16::try_from(offset?).ok()?,
                bytes: u8::try_from(bytes?).ok()?,
            })
        }
    }
}
