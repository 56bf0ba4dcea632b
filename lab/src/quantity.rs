//! Kubernetes quantities (`100m`, `64Mi`, `3e2`) as exact thousandths, to be added, divided and compared. Pure.

/// An amount in thousandths of its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i128);

impl Amount {
    pub const ZERO: Self = Self(0);
    pub const ONE: Self = Self::whole(1);

    pub const fn whole(count: u32) -> Self {
        Self(count as i128 * 1000)
    }

    /// Finer than a thousandth is rounded up, as Kubernetes does for what it stores in milli-units: a request must not
    /// shrink.
    pub fn parse(text: &str) -> Option<Self> {
        let split = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (numerator, denominator) = scale(suffix)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let places = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let over = denominator.checked_mul(places)?;
        let scaled = digits.checked_mul(numerator)?.checked_mul(1000)?;
        Some(Self(scaled.checked_add(over - 1)?.div_euclid(over)))
    }

    /// How many whole divisors cover this amount; `None` for a zero divisor.
    pub fn divided_up(self, divisor: Self) -> Option<i128> {
        (divisor.0 > 0).then(|| (self.0 + divisor.0 - 1).div_euclid(divisor.0))
    }

    /// The share of a whole that this is; nothing has room for nothing.
    pub fn fraction_of(self, whole: Self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        if whole.is_zero() { 1.0 } else { self.0 as f64 / whole.0 as f64 }
    }

    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

impl std::ops::Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// A suffix as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => return exponent(suffix),
    })
}

fn exponent(suffix: &str) -> Option<(i128, i128)> {
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let scale = 10_i128.checked_pow(power.unsigned_abs()).filter(|_| power.abs() <= 18)?;
    Some(if power >= 0 { (scale, 1) } else { (1, scale) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notation_is_read_exactly() {
        for (text, thousandths) in [
            ("0", 0),
            ("2", 2000),
            ("100m", 100),
            ("1.5", 1500),
            (".5", 500),
            ("0.5Gi", (512 << 20) * 1000),
            ("64Mi", (64 << 20) * 1000),
            ("1e3", 1_000_000),
            ("5E-1", 500),
            ("12e-3", 12),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("100u", 1),
            ("1n", 1),
        ] {
            assert_eq!(Amount::parse(text), Some(Amount(thousandths)), "{text}");
        }
        for text in ["", "Mi", "1X", "1Qi", "1e", "e3", "1e99", "1.2.3", "much", "."] {
            assert_eq!(Amount::parse(text), None, "{text}");
        }
    }

    #[test]
    fn amounts_are_added_divided_and_compared() {
        let amount = |text| Amount::parse(text).expect("a quantity");
        assert_eq!(amount("1500m").divided_up(amount("1")), Some(2));
        assert_eq!(amount("128Mi").divided_up(amount("1Mi")), Some(128));
        assert_eq!(amount("1").divided_up(Amount::ZERO), None);
        assert_eq!(amount("500m") + amount("1.5"), amount("2"));
        assert!((amount("500m").fraction_of(amount("2")) - 0.25).abs() < f64::EPSILON);
        assert!((amount("1").fraction_of(Amount::ZERO) - 1.0).abs() < f64::EPSILON);
        assert!(amount("1Ki") > amount("1k"));
    }
}
