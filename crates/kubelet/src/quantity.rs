//! Resource amounts as the node agent needs them: CPU in millicores, memory in bytes, both rounded up.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A set of amounts by resource name, as in `resources.requests`.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// Exact value of `text` as a fraction `numerator / 10^scale`, or nothing when it is no quantity.
fn parse(text: &str) -> Option<(i128, u32)> {
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = u32::try_from(fraction.len()).ok()?;
    let (multiplier, exponent) = suffix_factor(suffix)?;
    let digits = digits.checked_mul(multiplier)?;
    if exponent >= 0 {
        let grown = digits.checked_mul(10_i128.checked_pow(exponent.unsigned_abs())?)?;
        Some((grown, scale))
    } else {
        Some((digits, scale.checked_add(exponent.unsigned_abs())?))
    }
}

/// The factor of a suffix as `(multiplier, power of ten)`.
fn suffix_factor(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1024_i128.pow(power), 0));
    match suffix {
        "" => Some((1, 0)),
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        other => other.strip_prefix(['e', 'E'])?.parse().ok().map(|exponent| (1, exponent)),
    }
}

/// `quantity × multiplier`, rounded up to a whole number; what is no quantity counts as zero.
fn scaled(quantity: &Quantity, multiplier: i128) -> i64 {
    let Some((digits, scale)) = parse(&quantity.0) else { return 0 };
    let (Some(number), Some(divisor)) = (digits.checked_mul(multiplier), 10_i128.checked_pow(scale)) else {
        return i64::MAX;
    };
    let quotient = number.div_euclid(divisor);
    let rounded = if number.rem_euclid(divisor) > 0 { quotient + 1 } else { quotient };
    i64::try_from(rounded).unwrap_or(i64::MAX)
}

/// The whole value, rounded up (bytes of memory, number of Pods).
pub(crate) fn value(quantity: &Quantity) -> i64 {
    scaled(quantity, 1)
}

/// The value in thousandths, rounded up (millicores of CPU).
pub(crate) fn milli(quantity: &Quantity) -> i64 {
    scaled(quantity, 1000)
}

/// Bytes as a quantity: the largest binary unit that leaves a whole number.
pub(crate) fn binary(bytes: u64) -> String {
    let units = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"].into_iter().zip((1_u32..=6).rev());
    let fitting = units
        .map(|(unit, power)| (unit, 1_u64 << (10 * power)))
        .find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    fitting.map_or_else(|| bytes.to_string(), |(unit, size)| format!("{}{unit}", bytes / size))
}

/// `value / divisor`, rounded up; both in the unit that `in_unit` gives. A zero divisor counts as one.
pub(crate) fn divided(quantity: &Quantity, divisor: &Quantity, in_unit: fn(&Quantity) -> i64) -> i64 {
    let divisor = in_unit(divisor).max(1);
    let number = in_unit(quantity);
    number.div_euclid(divisor) + i64::from(number.rem_euclid(divisor) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_round_up_and_know_every_suffix() {
        let q = |text: &str| Quantity(text.to_owned());
        for (text, whole, thousandths) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("0.1m", 1, 1),
            ("64Mi", 64 << 20, (64 << 20) * 1000),
            ("1e3", 1000, 1_000_000),
            ("2k", 2000, 2_000_000),
            ("1500u", 1, 2),
            ("nonsense", 0, 0),
        ] {
            assert_eq!(value(&q(text)), whole, "{text}");
            assert_eq!(milli(&q(text)), thousandths, "{text}");
        }
        for (bytes, text) in
            [(0, "0"), (1000, "1000"), (64 << 10, "64Ki"), (3 << 20, "3Mi"), (2048 << 20, "2Gi")]
        {
            assert_eq!(binary(bytes), text);
        }
        assert_eq!(divided(&q("250m"), &q("1"), milli), 1);
        assert_eq!(divided(&q("250m"), &q("1m"), milli), 250);
        assert_eq!(divided(&q("100Mi"), &q("1Mi"), value), 100);
        assert_eq!(divided(&q("100Mi"), &q("0"), value), 100 << 20);
    }
}
