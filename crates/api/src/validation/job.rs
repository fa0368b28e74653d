//! Rules for Jobs and `CronJob`s.

use serde_json::Value;

use super::meta::{object_meta, object_meta_update};
use super::rule::{self, immutables, non_negatives};
use super::{FieldErrors, Path, quote, semantically_equal};
use crate::access::{Access, carry_over, metadata, spec};
use crate::kind::Ctx;
use crate::name::{DNS_LABEL_MAX, dns_label_faults, dns_subdomain_faults};
use crate::selector::LabelSelector;

/// What the `CronJob` controller appends to the names of its Jobs.
const SUFFIX_LENGTH: usize = 11;
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];

static NULL: Value = Value::Null;

fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    object.field(name).unwrap_or(&NULL)
}

/// Rules for a new Job.
pub fn job(object: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    generated_selector(object, &mut errors);
    let path = Path::new("spec");
    if spec(object).field("selector").is_none() {
        errors.required(&path.child("selector"), "");
    } else {
        super::volume::label_selector(field(spec(object), "selector"), &path.child("selector"), &mut errors);
        selects_own_pods(spec(object), &path, &mut errors);
    }
    job_spec(spec(object), ctx, &path, &mut errors);
    last_pod_name(object, &mut errors);
    errors
}

fn selects_own_pods(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let selector = LabelSelector::from_object(spec.field("selector")).unwrap_or_default();
    let labels = metadata(field(spec, "template")).map("labels");
    if !selector.matches(labels) {
        let value = labels.cloned().map_or(Value::Null, Value::Object);
        let path = path.child("template").child("metadata").child("labels");
        errors.invalid(&path, value, "`selector` does not match template `labels`");
    }
}

/// The selector that the server makes selects this Job's Pods alone.
fn generated_selector(job: &Value, errors: &mut FieldErrors) {
    if spec(job).is_true("manualSelector") || spec(job).field("selector").is_none() {
        return;
    }
    let meta = metadata(job);
    let labels = metadata(field(spec(job), "template")).entries("labels");
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    let wanted = [(UID_LABELS, meta.text("uid")), (NAME_LABELS, meta.text("name"))];
    for (key, value) in wanted.into_iter().flat_map(|(keys, value)| keys.map(|key| (key, value))) {
        match labels.iter().find(|(k, _)| *k == key) {
            None => errors.required(&path.key(key), format!("must be '{value}'")),
            Some((_, found)) if *found != value => {
                errors.invalid(&path.key(key), *found, format!("must be '{value}'"));
            }
            Some(_) => {}
        }
    }
}

/// The Pods of an indexed Job have host names.
fn last_pod_name(job: &Value, errors: &mut FieldErrors) {
    let spec = spec(job);
    let Some(last) = spec.int("completions").filter(|n| *n > 0 && spec.text("completionMode") == "Indexed")
    else {
        return;
    };
    let name = metadata(job).text("name");
    let host = format!("{name}-{}", last - 1);
    if !dns_label_faults(&host).is_empty() {
        let detail = format!("will not able to create pod with invalid DNS label: {host}");
        errors.invalid(&Path::new("metadata").child("name"), name, detail);
    }
}

fn job_spec(spec: &Value, ctx: &Ctx, path: &Path, errors: &mut FieldErrors) {
    const COUNTS: &[&str] = &[
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    non_negatives(spec, COUNTS, path, errors);
    if spec.field("maxFailedIndexes").is_some() && spec.field("backoffLimitPerIndex").is_none() {
        errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    completion_mode(spec, path, errors);
    failure_policy(spec, path, errors);
    replacement_policy(spec, path, errors);
    let below = path.child("template");
    rule::template(field(spec, "template"), ctx, &below, errors);
    let path = below.child("spec").child("restartPolicy");
    match crate::access::spec(field(spec, "template")).text("restartPolicy") {
        "" | "Always" => errors.required(&path, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.field("podFailurePolicy").is_some() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.invalid(&path, "OnFailure", detail);
        }
        "OnFailure" | "Never" => {}
        other => errors.not_supported(&path, other, &["OnFailure", "Never"]),
    }
}

fn completion_mode(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    const MOST_PARALLEL: i64 = 100_000;
    match spec.text("completionMode") {
        "Indexed" => {
            if spec.field("completions").is_none() {
                errors.required(&path.child("completions"), "when completion mode is Indexed");
            }
            if let Some(many) = spec.int("parallelism").filter(|n| *n > MOST_PARALLEL) {
                let detail =
                    format!("must be less than or equal to {MOST_PARALLEL} when completion mode is Indexed");
                errors.invalid(&path.child("parallelism"), many, detail);
            }
            let completions = spec.int("completions").unwrap_or(i64::MAX);
            if let Some(failed) = spec.int("maxFailedIndexes").filter(|n| *n > completions) {
                let detail = "must be less than or equal to completions";
                errors.invalid(&path.child("maxFailedIndexes"), failed, detail);
            }
        }
        "" | "NonIndexed" => {
            for name in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
                if let Some(value) = spec.field(name) {
                    errors.invalid(&path.child(name), value.clone(), "requires indexed completion mode");
                }
            }
        }
        other => errors.not_supported(&path.child("completionMode"), other, &["Indexed", "NonIndexed"]),
    }
}

fn failure_policy(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("podFailurePolicy").child("rules");
    for (i, one) in field(spec, "podFailurePolicy").list("rules").iter().enumerate() {
        let path = path.index(i);
        rule::one_of(one, "action", &["Count", "FailIndex", "FailJob", "Ignore"], &path, errors);
        if one.text("action") == "FailIndex" && spec.field("backoffLimitPerIndex").is_none() {
            let detail = "requires the backoffLimitPerIndex to be set";
            errors.invalid(&path.child("action"), "FailIndex", detail);
        }
        match (one.field("onExitCodes"), one.list("onPodConditions").is_empty()) {
            (Some(_), false) => {
                let detail = "specifying both OnExitCodes and OnPodConditions is not supported";
                errors.invalid(&path, Value::Null, detail);
            }
            (None, true) => {
                let detail = "specifying one of OnExitCodes and OnPodConditions is required";
                errors.invalid(&path, Value::Null, detail);
            }
            (Some(codes), true) => exit_codes(codes, &path.child("onExitCodes"), errors),
            (None, false) => {}
        }
    }
}

fn exit_codes(codes: &Value, path: &Path, errors: &mut FieldErrors) {
    rule::one_of(codes, "operator", &["In", "NotIn"], path, errors);
    let values = codes.list("values");
    if values.is_empty() {
        errors.invalid(&path.child("values"), values, "at least one value is required");
    }
    for (i, value) in values.iter().enumerate() {
        if codes.text("operator") == "In" && value == 0 {
            errors.invalid(&path.child("values").index(i), 0, "must not be 0 for the In operator");
        }
        if values.iter().take(i).any(|earlier| earlier == value) {
            errors.duplicate(&path.child("values").index(i), value.clone());
        }
    }
}

fn replacement_policy(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("podReplacementPolicy");
    match (spec.text("podReplacementPolicy"), spec.field("podFailurePolicy").is_some()) {
        ("" | "Failed", _) | ("TerminatingOrFailed", false) => {}
        (other, true) => errors.not_supported(&path, other, &["Failed"]),
        (other, false) => errors.not_supported(&path, other, &["Failed", "TerminatingOrFailed"]),
    }
}

/// Rules for a changed Job: what it runs stays.
pub fn job_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    const FIXED: &[&str] =
        &["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];
    let mut errors = object_meta_update(new, old);
    let path = Path::new("spec");
    let (new, old) = (spec(new), spec(old));
    job_spec(new, ctx, &path, &mut errors);
    completions(new, old, &path, &mut errors);
    immutables(new, old, &["selector"], &path, &mut errors);
    template_update(new, old, &path, &mut errors);
    immutables(new, old, FIXED, &path, &mut errors);
    errors
}

/// The number of completions changes only for indexed Jobs, together with the parallelism.
fn completions(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    if new.text("completionMode") != "Indexed" {
        immutables(new, old, &["completions"], path, errors);
    } else if new.int("completions") != old.int("completions")
        && let Some(wanted) = new.int("completions")
        && new.int("parallelism") != Some(wanted)
    {
        let detail = "can only be modified in tandem with spec.parallelism";
        errors.invalid(&path.child("completions"), wanted, detail);
    }
}

/// While a Job is suspended and has not started, where its Pods run may change.
fn template_update(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let (wanted, mut before) = (field(new, "template"), field(old, "template").clone());
    if old.is_true("suspend") {
        for name in ["labels", "annotations"] {
            if let Some(meta) = before.get_mut("metadata") {
                carry_over(meta, metadata(wanted), name);
            }
        }
        if let Some(pod) = before.get_mut("spec") {
            for name in ["nodeSelector", "tolerations", "schedulingGates", "affinity"] {
                carry_over(pod, spec(wanted), name);
            }
        }
    }
    if !semantically_equal(wanted, &before) {
        errors.invalid(&path.child("template"), wanted.clone(), "field is immutable");
    }
}

/// Rules for a new `CronJob`.
pub fn cron_job(object: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    cron_spec(spec(object), ctx, &mut errors);
    let name = metadata(object).text("name");
    if name.len() > DNS_LABEL_MAX - SUFFIX_LENGTH {
        errors.invalid(&Path::new("metadata").child("name"), name, "must be no more than 52 characters");
    }
    errors
}

/// Rules for a changed `CronJob`.
pub fn cron_job_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    cron_spec(spec(new), ctx, &mut errors);
    errors
}

fn cron_spec(spec: &Value, ctx: &Ctx, errors: &mut FieldErrors) {
    const COUNTS: &[&str] =
        &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"];
    let path = Path::new("spec");
    schedule(spec.text("schedule"), &path.child("schedule"), errors);
    non_negatives(spec, COUNTS, &path, errors);
    if let Some(zone) = spec.field("timeZone").and_then(Value::as_str) {
        time_zone(zone, &path.child("timeZone"), errors);
    }
    rule::one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path, errors);
    let job = crate::access::spec(field(spec, "jobTemplate"));
    let below = path.child("jobTemplate").child("spec");
    job_spec(job, ctx, &below, errors);
    if let Some(selector) = job.field("selector") {
        errors.invalid(&below.child("selector"), selector.clone(), "`selector` will be auto-generated");
    }
    if job.is_true("manualSelector") {
        errors.not_supported(&below.child("manualSelector"), true, &["nil", "false"]);
    }
}

fn time_zone(zone: &str, path: &Path, errors: &mut FieldErrors) {
    let is_part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
    };
    if zone.is_empty() {
        errors.invalid(path, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(path, zone, detail);
    } else if !zone.split('/').all(is_part) {
        errors.invalid(path, zone, format!("unknown time zone {zone}"));
    }
}

/// The fields of a schedule: name, least, most.
const FIELDS: [(i64, i64); 5] = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

fn schedule(schedule: &str, path: &Path, errors: &mut FieldErrors) {
    if schedule.is_empty() {
        errors.required(path, "");
        return;
    }
    if schedule.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid(path, schedule, detail);
    } else if let Some(fault) = schedule_fault(schedule) {
        errors.invalid(path, schedule, fault);
    }
}

fn schedule_fault(schedule: &str) -> Option<String> {
    if let Some(name) = schedule.strip_prefix('@') {
        let is_known =
            matches!(name, "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly")
                || name.starts_with("every ");
        return (!is_known).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_ascii_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let found = fields.len();
        return Some(format!("expected exactly 5 fields, found {found}: [{}]", fields.join(" ")));
    }
    fields.iter().enumerate().flat_map(|(i, field)| field.split(',').map(move |part| (i, part))).find_map(
        |(i, part)| {
            let bounds = FIELDS.get(i).copied()?;
            part_fault(part, bounds, i)
        },
    )
}

/// One part of a field: `*`, `*/5`, `3`, `1-5`, `1-5/2`.
fn part_fault(part: &str, (low, high): (i64, i64), field: usize) -> Option<String> {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step
        && step.parse::<u32>().ok().is_none_or(|step| step == 0)
    {
        return Some(format!("step of range should be a positive number: {part}"));
    }
    if matches!(range, "*" | "?") {
        return None;
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (Some(first), Some(last)) = (number(first, field), number(last, field)) else {
        return Some(format!(
            "failed to parse number: strconv.Atoi: parsing {}: invalid syntax",
            quote(range)
        ));
    };
    match () {
        () if first < low => Some(format!("beginning of range ({first}) below minimum ({low}): {part}")),
        () if last > high => Some(format!("end of range ({last}) above maximum ({high}): {part}")),
        () if first > last => {
            Some(format!("beginning of range ({first}) beyond end of range ({last}): {part}"))
        }
        () => None,
    }
}

fn number(text: &str, field: usize) -> Option<i64> {
    let named = |names: &[&str], first: usize| {
        let at = names.iter().position(|name| text.eq_ignore_ascii_case(name))?;
        i64::try_from(at + first).ok()
    };
    let by_name = match field {
        3 => named(&MONTHS, 1),
        4 => named(&DAYS, 0),
        _ => None,
    };
    by_name.or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;
    use jiff::Timestamp;
    use serde_json::json;

    fn ctx() -> Ctx {
        Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() }
    }

    fn a_job(more: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "j", "namespace": "d", "uid": "u", "resourceVersion": "1"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        for (name, value) in more.as_object().unwrap() {
            object["spec"][name] = value.clone();
        }
        crate::default::apply(crate::schema::type_named("batch.v1.Job").unwrap(), &mut object);
        let kind = crate::kind::find("batch", "v1", "jobs").unwrap();
        (kind.prepare_create)(&mut object, &ctx());
        object
    }

    #[test]
    fn a_job_runs_pods_that_end() {
        assert_eq!(job(&a_job(&json!({})), &ctx()).to_string(), "[]");
        let mut always = a_job(&json!({}));
        always["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        assert_eq!(
            job(&always, &ctx()).to_string(),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        );
        assert_eq!(
            job(&a_job(&json!({"completionMode": "Indexed", "parallelism": 2})), &ctx()).to_string(),
            "spec.completions: Required value: when completion mode is Indexed"
        );
    }

    #[test]
    fn what_a_job_runs_stays() {
        let old = a_job(&json!({"completions": 2}));
        let mut new = old.clone();
        new["spec"]["parallelism"] = 3.into();
        assert_eq!(job_update(&new, &old, &ctx()).to_string(), "[]");
        new["spec"]["completions"] = 3.into();
        assert_eq!(
            job_update(&new, &old, &ctx()).to_string(),
            "spec.completions: Invalid value: 3: field is immutable"
        );
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = "other".into();
        assert!(job_update(&new, &old, &ctx()).to_string().contains("spec.template: Invalid value"));
    }

    #[test]
    fn schedules_are_read() {
        for good in ["*/5 * * * *", "0 0 1 jan mon-fri", "@hourly", "1,2,3-9/2 * ? * 7", "59 23 31 12 *"] {
            assert_eq!(schedule_fault(good), None, "{good}");
        }
        for (bad, fault) in [
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("@often", "unrecognized descriptor: @often"),
            ("a * * * *", "failed to parse number: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
        ] {
            assert_eq!(schedule_fault(bad).as_deref(), Some(fault));
        }
    }
}
