//! Resource quantities: parsing and the canonical form they are stored in.
use std::fmt;

use serde_json::Value;

pub(crate) const PATTERN_MESSAGE: &str = "quantities must match the regular expression \
     '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// A fixed-point number: `digits * 10^-scale`, remembering which family of suffixes it was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

const NANO: i128 = 1_000_000_000;
const BINARY: &[(&str, u32)] = &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: &[(&str, i32)] = &[
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

impl Quantity {
    /// Reads a quantity; None when it is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(split);
        let (format, binary_shift, exponent) = suffix_value(suffix)?;
        let (digits, fraction) = digits(number)?;
        let shift = exponent.checked_sub(fraction)?.checked_add(9)?;
        let nanos = scale(digits.checked_shl_exact(binary_shift)?, shift)?;
        Some(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// A quantity out of a JSON string or number.
    pub(crate) fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    pub(crate) fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub(crate) fn nanos(self) -> i128 {
        self.nanos
    }
}

/// `1.50` is 150 with two digits of fraction.
fn digits(number: &str) -> Option<(i128, i32)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 36 {
        return None;
    }
    let all: String = [whole, fraction].concat();
    Some((all.parse().ok()?, i32::try_from(fraction.len()).ok()?))
}

fn suffix_value(suffix: &str) -> Option<(Format, u32, i32)> {
    if let Some((_, shift)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Some((Format::Binary, *shift, 0));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((Format::Decimal, 0, *exponent));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
    Some((Format::Exponent, 0, exponent))
}

trait ShiftExact: Sized {
    fn checked_shl_exact(self, bits: u32) -> Option<Self>;
}

impl ShiftExact for i128 {
    fn checked_shl_exact(self, bits: u32) -> Option<Self> {
        self.checked_mul(1i128.checked_shl(bits)?)
    }
}

/// `digits * 10^power`; what is finer than a nano is rounded up, as upstream does.
fn scale(digits: i128, power: i32) -> Option<i128> {
    if power >= 0 {
        return digits.checked_mul(10i128.checked_pow(u32::try_from(power).ok()?)?);
    }
    match 10i128.checked_pow(power.unsigned_abs()) {
        Some(divisor) => Some(digits / divisor + i128::from(digits % divisor != 0)),
        None => Some(i128::from(digits != 0)),
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANO == 0;
        match self.format {
            Format::Binary if whole && (self.nanos / NANO).abs() >= 1024 => binary(f, self.nanos / NANO),
            Format::Exponent => exponent(f, self.nanos),
            _ => decimal(f, self.nanos),
        }
    }
}

fn binary(f: &mut fmt::Formatter<'_>, value: i128) -> fmt::Result {
    let fits = BINARY.iter().rev().find(|(_, shift)| value % (1i128 << shift) == 0);
    match fits {
        Some((suffix, shift)) => write!(f, "{}{suffix}", value >> shift),
        None => write!(f, "{value}"),
    }
}

fn decimal(f: &mut fmt::Formatter<'_>, nanos: i128) -> fmt::Result {
    let unit = |exponent: i32| 10i128.pow((exponent + 9).unsigned_abs());
    let fits = DECIMAL.iter().rev().find(|(_, exponent)| nanos % unit(*exponent) == 0);
    match fits {
        Some((suffix, exponent)) => write!(f, "{}{suffix}", nanos / unit(*exponent)),
        None => write!(f, "{nanos}n"),
    }
}

fn exponent(f: &mut fmt::Formatter<'_>, nanos: i128) -> fmt::Result {
    let (mut mantissa, mut power) = (nanos, -9);
    while mantissa % 1000 == 0 {
        mantissa /= 1000;
        power += 3;
    }
    if power == 0 { write!(f, "{mantissa}") } else { write!(f, "{mantissa}e{power}") }
}

#[cfg(test)]
mod tests {
    use super::Quantity;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0.5", "500m"),
            ("1", "1"),
            ("1.0", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("100Mi", "100Mi"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("12E", "12E"),
            ("-5m", "-5m"),
            ("0.1m", "100u"),
            (".5", "500m"),
            ("5.", "5"),
            ("1000Ki", "1000Ki"),
            ("512", "512"),
        ];
        for (text, canonical) in cases {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()).as_deref(), Some(canonical), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["", "m", "1Kb", "1 Gi", "--1", "1.2.3", "e3", "1ee3", "Gi", "."] {
            assert_eq!(Quantity::parse(text), None, "{text:?}");
        }
    }
}
