//! Sums that are exact until they are read: the order of the terms leaves no trace.

/// The exact sum of finite numbers, as parts that do not overlap (Shewchuk 1997).
#[derive(Debug, Clone, Default)]
pub struct ExactSum {
    pub(super) parts: Vec<f64>,
    pub(super) overflow: bool,
}

impl ExactSum {
    /// Adds a term. An infinite one, or no number, makes the sum overflow.
    pub fn add(&mut self, term: f64) {
        if !term.is_finite() {
            self.overflow = true;
            return;
        }
        let (mut x, mut kept) = (term, 0);
        for i in 0..self.parts.len() {
            let mut y = self.parts[i];
            if x.abs() < y.abs() {
                std::mem::swap(&mut x, &mut y);
            }
            let high = x + y;
            let low = y - (high - x);
            if low != 0.0 {
                self.parts[kept] = low;
                kept += 1;
            }
            x = high;
        }
        self.parts.truncate(kept);
        self.parts.push(x);
        if !x.is_finite() {
            self.overflow = true;
            self.parts.clear();
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &ExactSum) {
        self.overflow |= other.overflow;
        other.parts.iter().for_each(|&p| self.add(p));
    }

    /// The sum, rounded once to nearest, ties to even; `None` where it overflowed.
    pub fn value(&self) -> Option<f64> {
        if self.overflow {
            return None;
        }
        let mut rest = &self.parts[..];
        let Some((&last, head)) = rest.split_last() else { return Some(0.0) };
        let (mut high, mut low) = (last, 0.0);
        rest = head;
        while let Some((&y, head)) = rest.split_last() {
            let x = high;
            high = x + y;
            low = y - (high - x);
            rest = head;
            if low != 0.0 {
                break;
            }
        }
        // Half way between two numbers, what is below decides.
        if let Some(&below) = rest.last()
            && (low < 0.0) == (below < 0.0)
            && low != 0.0
        {
            let twice = low * 2.0;
            let up = high + twice;
            if up - high == twice {
                high = up;
            }
        }
        Some(high)
    }
}

/// Equal as numbers; the parts of equal sums may differ.
impl PartialEq for ExactSum {
    fn eq(&self, other: &Self) -> bool {
        if self.overflow || other.overflow {
            return self.overflow == other.overflow;
        }
        let mut difference = self.clone();
        other.parts.iter().for_each(|&p| difference.add(-p));
        difference.value() == Some(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(terms: &[f64]) -> Option<f64> {
        let mut s = ExactSum::default();
        terms.iter().for_each(|&t| s.add(t));
        s.value()
    }

    #[test]
    fn sums_are_rounded_once() {
        // Those of Python's math.fsum.
        assert_eq!(sum(&[0.1; 10]), Some(1.0));
        assert_eq!(sum(&[1e100, 1.0, -1e100, 1e-100, 1e50, -1.0, -1e50]), Some(1e-100));
        assert_eq!(sum(&[1e16, 1.0, 1e-16]), Some(10000000000000002.0));
        assert_eq!(sum(&[9007199254740992.0, -0.5, -5.551115123125783e-17]), Some(9007199254740991.0));
        assert_eq!(sum(&[]), Some(0.0));
        assert_eq!(sum(&[f64::MAX, f64::MAX]), None);
        assert_eq!(sum(&[f64::NAN]), None);
    }

    #[test]
    fn the_order_of_terms_and_merges_leaves_no_trace() {
        let terms: Vec<f64> = (1..500).map(|i| (i as f64).sin() * 10f64.powi(i % 37 - 18)).collect();
        let want = sum(&terms);
        for step in [7, 11, 101, 498] {
            let (mut one, mut two) = (ExactSum::default(), ExactSum::default());
            for i in 0..499 {
                let term = terms[i * step % 499];
                if i % 3 == 0 { one.add(term) } else { two.add(term) }
            }
            two.merge(&one);
            assert_eq!(two.value(), want);
        }
    }
}
