//! Kubernetes quantities as exact thousandths, to be added and compared. Pure.

/// An amount in thousandths of its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thousandths(i128);

impl Thousandths {
    /// Reads `100m`, `1.5`, `2Gi`, `3e2`. What is no quantity counts as nothing: the API server refused it before.
    pub fn read(text: &str) -> Self {
        Self(parse(text).unwrap_or(0))
    }

    /// The share of a whole that this is, for comparing how full nodes are.
    pub fn fraction_of(self, whole: Self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        if whole.0 == 0 { 1.0 } else { self.0 as f64 / whole.0 as f64 }
    }
}

impl std::ops::Add for Thousandths {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

fn parse(text: &str) -> Option<i128> {
    let number_end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let (multiply, divide) = factor(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let up = digits.checked_mul(multiply)?.checked_mul(1000)?;
    // Rounded away from zero, as requests must not shrink.
    Some(up.checked_add(divide.checked_mul(places)? - 1)?.div_euclid(divide * places))
}

fn factor(suffix: &str) -> Option<(i128, i128)> {
    let decimal = ["k", "M", "G", "T", "P", "E"].iter().position(|s| *s == suffix);
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|s| *s == suffix);
    let small = ["m", "u", "n"].iter().position(|s| *s == suffix);
    let power = |at: usize| u32::try_from(at + 1).ok();
    if let Some(at) = decimal {
        return Some((1000i128.checked_pow(power(at)?)?, 1));
    }
    if let Some(at) = binary {
        return Some((1024i128.checked_pow(power(at)?)?, 1));
    }
    if let Some(at) = small {
        return Some((1, 1000i128.checked_pow(power(at)?)?));
    }
    if suffix.is_empty() {
        return Some((1, 1));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let size = 10i128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent < 0 { (1, size) } else { (size, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_and_nonsense_as_nothing() {
        let cases = [
            ("0", 0),
            ("1", 1000),
            ("100m", 100),
            ("1.5", 1500),
            ("2k", 2_000_000),
            ("1Ki", 1_024_000),
            ("0.5Gi", 536_870_912_000),
            ("3e2", 300_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("100u", 1),
            ("1n", 1),
            ("12e-3", 12),
            ("", 0),
            ("much", 0),
            ("1Qi", 0),
        ];
        for (text, expected) in cases {
            assert_eq!(Thousandths::read(text), Thousandths(expected), "{text:?}");
        }
    }
}
