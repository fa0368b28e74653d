//! Quantities of resources: `100m`, `1.5Gi`, `2e3`. Kept exactly, in billionths; written in one canonical form.
//! Behaviour follows `k8s.io/apimachinery/pkg/api/resource` of Kubernetes 1.36.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

const NANO: i128 = 1_000_000_000;
/// Upstream caps quantities at the largest 64-bit number.
const MAX_NANO: i128 = 9_223_372_036_854_775_807 * NANO;

/// How a quantity was written, and so how it is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Powers of ten by letter: `m`, `k`, `M`.
    DecimalSi,
    /// Powers of 1024: `Ki`, `Mi`.
    BinarySi,
    /// Powers of ten by number: `e3`.
    DecimalExponent,
}

/// An amount of something. Ordered and compared by amount alone: `1Ki` equals `1024`.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is no quantity; the texts are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// Not a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A number with an unknown suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// A whole number of units.
    pub fn from_units(units: i64) -> Self {
        Self { nano: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// A number of thousandths, such as CPU in `m`.
    pub fn from_milli(milli: i64) -> Self {
        Self { nano: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// A number of bytes, written with `Ki`, `Mi` …
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nano: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// Whole units, rounded up.
    pub fn units(self) -> i64 {
        ceil_div(self.nano, NANO)
    }

    /// Thousandths, rounded up.
    pub fn milli(self) -> i64 {
        ceil_div(self.nano, NANO / 1000)
    }

    /// Whether it is a whole number of units.
    pub const fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// Whether it is less than nothing.
    pub const fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// The sum, in this one's form (or the other's when this is nothing).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nano: (self.nano + other.nano).clamp(-MAX_NANO, MAX_NANO), format }
    }

    /// The difference, in this one's form.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nano: (self.nano - other.nano).clamp(-MAX_NANO, MAX_NANO), format: self.format }
    }

    /// The number of times that `divisor` fits, rounded up, as the downward API gives resources.
    pub fn divided_by(self, divisor: Self) -> i64 {
        if divisor.is_zero() { self.units() } else { ceil_div(self.nano, divisor.nano) }
    }
}

/// The canonical form of a quantity in text or number form.
///
/// # Errors
/// When the text is no quantity.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    text.parse::<Quantity>().map(|q| q.to_string())
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Format);
        }
        check_suffix_shape(suffix)?;
        let (scale, format) = interpret_suffix(suffix).ok_or(QuantityError::Suffix)?;
        let nano = scaled(whole, fraction, scale);
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }
}

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn check_suffix_shape(suffix: &str) -> Result<(), QuantityError> {
    let letters = suffix.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(suffix.len());
    let rest = suffix.get(letters..).unwrap_or_default();
    let digits = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    if digits.bytes().all(|c| c.is_ascii_digit()) { Ok(()) } else { Err(QuantityError::Format) }
}

fn interpret_suffix(suffix: &str) -> Option<(Scale, Format)> {
    let decimal = |exponent| Some((Scale::Ten(exponent), Format::DecimalSi));
    let binary = |exponent| Some((Scale::Two(exponent), Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        other => {
            let exponent = other.strip_prefix(['e', 'E'])?;
            Some((Scale::Ten(exponent.parse().ok()?), Format::DecimalExponent))
        }
    }
}

/// The number in billionths, rounded away from nothing and capped.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    // Digits beyond these cannot be seen after capping or rounding; a lost one only rounds up.
    let whole = whole.trim_start_matches('0');
    if whole.len() > 30 {
        return MAX_NANO;
    }
    let kept = fraction.get(..fraction.len().min(20)).unwrap_or_default();
    let lost = fraction.get(kept.len()..).unwrap_or_default().bytes().any(|c| c != b'0');
    let mantissa: i128 = format!("0{whole}{kept}").parse().unwrap_or(i128::MAX);
    if mantissa == 0 && !lost {
        return 0;
    }
    let decimals = i32::try_from(kept.len()).unwrap_or(i32::MAX);
    let (factor, ten) = match scale {
        Scale::Ten(exponent) => (1_i128, exponent.saturating_add(9).saturating_sub(decimals)),
        Scale::Two(exponent) => (1_i128 << exponent, 9 - decimals),
    };
    let value = mantissa.checked_mul(factor).and_then(|v| {
        let power = 10_i128.checked_pow(ten.unsigned_abs());
        match (ten >= 0, power) {
            (true, Some(power)) => v.checked_mul(power),
            (true, None) => None,
            (false, Some(power)) => Some(v / power + i128::from(v % power != 0)),
            (false, None) => Some(1),
        }
    });
    value.map_or(MAX_NANO, |v| v.saturating_add(i128::from(lost && ten <= 0)).min(MAX_NANO))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let is_small = self.nano.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !is_small && self.is_whole() {
            return write_binary(f, self.nano / NANO);
        }
        let (mut amount, mut exponent) = (self.nano, -9);
        while amount % 1000 == 0 && exponent < 18 {
            amount /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent && exponent != 0 {
            return write!(f, "{amount}e{exponent}");
        }
        let letters = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let index = usize::try_from((exponent + 9) / 3).unwrap_or_default();
        write!(f, "{amount}{}", letters.get(index).copied().unwrap_or_default())
    }
}

fn write_binary(f: &mut fmt::Formatter<'_>, mut units: i128) -> fmt::Result {
    let mut letters = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].into_iter();
    let mut letter = letters.next().unwrap_or_default();
    while units % 1024 == 0 {
        let Some(next) = letters.next() else { break };
        units /= 1024;
        letter = next;
    }
    write!(f, "{units}{letter}")
}

fn ceil_div(amount: i128, by: i128) -> i64 {
    let quotient = amount.div_euclid(by);
    let up = quotient + i128::from(amount.rem_euclid(by) != 0);
    i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(input: &str) -> String {
        canonical(input).unwrap()
    }

    #[test]
    fn canonical_forms_are_upstreams() {
        for (input, output) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("100m", "100m"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1Ki", "1Ki"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12E2", "1200"),
            ("100E-3", "100e-3"),
            ("1.1e-9", "2e-9"),
            ("0.0000000001", "1n"),
            ("1.3Ki", "1331200m"),
            ("-128974848", "-128974848"),
            ("+5", "5"),
            ("5E", "5E"),
            ("99999999999999999999999", "9223372036854775807"),
            (".5", "500m"),
            ("5.", "5"),
        ] {
            assert_eq!(text(input), output, "{input}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_told_as_upstream_tells_it() {
        for bad in ["", "abc", "1.2.3", "-", "1 Gi", "1Gi "] {
            assert_eq!(bad.parse::<Quantity>().unwrap_err(), QuantityError::Format, "{bad}");
        }
        for bad in ["1KI", "1mm", "1ki", "1eX", "1e"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
        assert_eq!("1mm".parse::<Quantity>().unwrap_err(), QuantityError::Suffix);
    }

    #[test]
    fn amounts_round_up() {
        let q: Quantity = "1.5".parse().unwrap();
        assert_eq!((q.units(), q.milli()), (2, 1500));
        let memory: Quantity = "64Mi".parse().unwrap();
        assert_eq!(memory.divided_by("1Mi".parse().unwrap()), 64);
        assert_eq!(memory.plus(Quantity::from_bytes(1024)).to_string(), "65537Ki");
        assert_eq!(memory.minus(memory).to_string(), "0");
        assert!("1Ki".parse::<Quantity>().unwrap() == "1024".parse().unwrap());
    }

    proptest! {
        #[test]
        fn a_canonical_form_reads_as_the_same_amount(units in any::<i32>(), suffix in prop::sample::select(
            vec!["n", "u", "m", "", "k", "M", "G", "Ki", "Mi", "Gi", "e3", "e-3"])) {
            let first: Quantity = format!("{units}{suffix}").parse().unwrap();
            let again: Quantity = first.to_string().parse().unwrap();
            prop_assert_eq!(first, again);
            prop_assert_eq!(first.to_string(), again.to_string());
        }

        #[test]
        fn order_and_sum_are_those_of_the_numbers(a in -1_000_000_i64..1_000_000, b in -1_000_000_i64..1_000_000) {
            let (qa, qb) = (Quantity::from_milli(a), Quantity::from_milli(b));
            prop_assert_eq!(qa.cmp(&qb), a.cmp(&b));
            prop_assert_eq!(qa.plus(qb).milli(), a + b);
            prop_assert_eq!(qa.minus(qb).milli(), a - b);
        }

        #[test]
        fn no_text_makes_it_panic(s in "\\PC{0,40}") {
            let _ = s.parse::<Quantity>();
        }

        #[test]
        fn no_number_makes_it_panic(s in "[+-]?[0-9]{0,40}(\\.[0-9]{0,40})?([KMGTPE]i|[numkMGTPE]|e[+-]?[0-9]{0,12})?") {
            if let Ok(q) = s.parse::<Quantity>() {
                let _ = (q.to_string(), q.units(), q.milli());
            }
        }
    }
}
