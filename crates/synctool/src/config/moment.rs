//! Ends of partitions as users write them: values, moments (`now - 30d`), and the original's lambdas.

use serde_json::Value;

use super::strategy::Bound;
use super::units::Span;

/// A value as text; none for one that has no text of its own.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// Reads an end of a dimension, or tells why not, with advice.
pub(super) fn parse(value: &Value) -> Result<Bound, (&'static str, &'static str)> {
    const HELP: &str = "write a value, such as 2024-01-01 or 1000, or a moment, such as now, now - 30d or today";
    let Some(text) = text(value) else {
        return Err(("an end of a partition must be a value or a moment", HELP));
    };
    // Blanks around a value may be part of it: only who knows the column can tell.
    let (written, text) = (text.as_str(), text.trim());
    if let Some(body) = text.strip_prefix("lambda") {
        let body = body.trim_start();
        let lambda = body.strip_prefix(':').and_then(lambda);
        return lambda.ok_or((
            "this lambda is not understood",
            "what is understood: datetime.now(), date.today(), and timedelta(days=…, hours=…) added or taken off; or write now - 30d",
        ));
    }
    if let Some(moment) = moment(text) {
        return Ok(moment);
    }
    // The original put the text into SQL as it stood, so its users quoted it.
    let bare = text
        .strip_prefix('\'')
        .and_then(|t| t.strip_suffix('\''))
        .unwrap_or(written);
    if bare.trim().is_empty() {
        return Err(("an end of a partition is empty", HELP));
    }
    Ok(Bound::Value(bare.to_owned()))
}

/// `now`, `today`, and spans added or taken off.
fn moment(text: &str) -> Option<Bound> {
    let (midnight, mut rest) = match (text.strip_prefix("now"), text.strip_prefix("today")) {
        (Some(rest), _) => (false, rest.trim_start()),
        (_, Some(rest)) => (true, rest.trim_start()),
        _ => return None,
    };
    let mut seconds = 0_i64;
    while !rest.is_empty() {
        let sign = sign(&mut rest)?;
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let span = whole_seconds(Span::parse(rest[..end].trim())?)?;
        seconds = seconds.checked_add(sign * span)?;
        rest = &rest[end..];
    }
    Some(Bound::Moment { midnight, seconds })
}

fn sign(rest: &mut &str) -> Option<i64> {
    let sign = match rest.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    *rest = rest[1..].trim_start();
    Some(sign)
}

fn whole_seconds(span: Span) -> Option<i64> {
    (span.0.subsec_nanos() == 0).then(|| i64::try_from(span.0.as_secs()).ok())?
}

/// What stands behind `lambda:`.
fn lambda(text: &str) -> Option<Bound> {
    let mut rest = text.trim();
    // Longer forms first, since one begins another.
    const NOW: &[&str] = &[
        "datetime.datetime.now(datetime.timezone.utc)",
        "datetime.datetime.utcnow()",
        "datetime.datetime.now()",
        "datetime.datetime.today()",
        "datetime.now(datetime.timezone.utc)",
        "datetime.now(timezone.utc)",
        "datetime.now(tz=timezone.utc)",
        "datetime.utcnow()",
        "datetime.now()",
        "datetime.today()",
    ];
    const TODAY: &[&str] = &["datetime.date.today()", "date.today()"];
    let after = |forms: &[&str]| forms.iter().find_map(|form| rest.strip_prefix(form));
    let (mut midnight, after_now) = match (after(NOW), after(TODAY)) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return None,
    };
    rest = after_now.trim_start();
    if let Some(after) = rest.strip_prefix(".date()") {
        (midnight, rest) = (true, after.trim_start());
    } else if let Some(arguments) = rest.strip_prefix(".replace(") {
        let end = arguments.find(')')?;
        let mut zeroed: Vec<&str> = Vec::new();
        for argument in arguments[..end].split(',') {
            let (part, value) = argument.split_once('=')?;
            (value.trim() == "0").then(|| zeroed.push(part.trim()))?;
        }
        let all = ["hour", "minute", "second"].iter().all(|part| zeroed.contains(part));
        all.then_some(())?;
        (midnight, rest) = (true, arguments[end + 1..].trim_start());
    }
    let mut seconds = 0_i64;
    while !rest.is_empty() {
        let sign = sign(&mut rest)?;
        let delta = rest
            .strip_prefix("datetime.")
            .unwrap_or(rest)
            .strip_prefix("timedelta(")?;
        let end = delta.find(')')?;
        for argument in delta[..end].split(',') {
            let (unit, number) = argument.split_once('=').unwrap_or(("days", argument));
            let number: i64 = number.trim().parse().ok()?;
            let unit = match unit.trim() {
                "weeks" => 604_800,
                "days" => 86_400,
                "hours" => 3600,
                "minutes" => 60,
                "seconds" => 1,
                _ => return None,
            };
            seconds = seconds.checked_add(sign.checked_mul(number)?.checked_mul(unit)?)?;
        }
        rest = delta[end + 1..].trim_start();
    }
    Some(Bound::Moment { midnight, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<String> {
        parse(&Value::from(text)).ok().map(|bound| match bound {
            Bound::Value(text) => format!("={text}"),
            moment => moment.to_string(),
        })
    }

    #[test]
    fn values_moments_and_lambdas() {
        for (text, meaning) in [
            ("2024-01-01", "=2024-01-01"),
            ("'2025-09-01'", "=2025-09-01"),
            (" eu ", "= eu "),
            (" ' eu' ", "= eu"),
            (" now ", "now"),
            ("nowhere", "=nowhere"),
            ("now", "now"),
            ("now-30d", "now - 30d"),
            ("now - 1d - 12h", "now - 36h"),
            ("today + 2h", "today + 2h"),
            ("lambda: datetime.now()", "now"),
            ("lambda: datetime.now() - timedelta(days=30)", "now - 30d"),
            (
                "lambda : datetime.utcnow() - timedelta(hours=1, minutes=30)",
                "now - 90m",
            ),
            ("lambda: datetime.now(timezone.utc) + timedelta(2)", "now + 2d"),
            ("lambda: date.today() - datetime.timedelta(weeks=1)", "today - 7d"),
            ("lambda: datetime.now().date()", "today"),
            (
                "lambda: datetime.now().replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)",
                "today - 1d",
            ),
        ] {
            assert_eq!(read(text).as_deref(), Some(meaning), "{text}");
        }
        for wrong in [
            "lambda: open('/etc/passwd')",
            "lambda: datetime.now() - timedelta(months=1)",
            "lambda: datetime.now().replace(day=1)",
            "lambda x: x",
            "lambda: datetime.now() -",
            "",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(parse(&Value::from(100)), Ok(Bound::Value("100".into())));
        assert!(parse(&Value::Null).is_err());
    }
}
