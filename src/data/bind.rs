//! Bindings: which columns make up an input, as in `--bind dense=I1..I13`.

use super::error::DataError;
use std::str::FromStr;

/// An input and the columns that it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The model's input.
    pub input: String,
    /// The columns or arrays, in order.
    pub columns: Vec<String>,
}

/// The most columns that one range may give.
const MAX_RANGE: u64 = 1 << 20;

/// The text that it is parsed from, with ranges written out.
impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.input, self.columns.join(","))
    }
}

impl FromStr for Bind {
    type Err = DataError;

    /// `INPUT=COL[,COL…]`, where a column may be a range `A1..A9`, both ends included. Leading zeros are kept: `C01..C12`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let fault = |what: &str| DataError::Bind(format!("binding {text:?}: {what}"));
        let (input, list) = text.split_once('=').ok_or_else(|| fault("expected INPUT=COLUMN[,COLUMN…]"))?;
        let mut columns = Vec::new();
        for part in list.split(',') {
            match part.split_once("..") {
                _ if part.is_empty() => return Err(fault("a column without a name")),
                None => columns.push(part.to_string()),
                Some((first, last)) => columns.extend(range(first, last).map_err(|e| fault(&e))?),
            }
        }
        if input.is_empty() {
            return Err(fault("an input without a name"));
        }
        Ok(Self { input: input.into(), columns })
    }
}

/// The names from `first` to `last`, which differ in the number at their end.
fn range(first: &str, last: &str) -> Result<Vec<String>, String> {
    let split = |name: &str| -> Option<(String, String, u64)> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &name[stem.len()..];
        Some((stem.into(), digits.into(), digits.parse().ok()?))
    };
    let numbers = split(first).zip(split(last));
    let Some(((stem, from, low), (other, to, high))) = numbers.filter(|(a, b)| a.0 == b.0) else {
        return Err(format!("a range needs names that differ in the number at their end, as I1..I13, found {first}..{last}"));
    };
    if low > high || high - low >= MAX_RANGE {
        return Err(format!("the range {first}..{last} is empty or too long"));
    }
    // Zeros in front are kept where the ends have the same width.
    let width = if from.len() == to.len() { from.len() } else { 0 };
    if width == 0 && from.starts_with('0') && from.len() > 1 {
        return Err(format!("the ends of {first}..{last} must have the same number of digits"));
    }
    debug_assert_eq!(stem, other);
    Ok((low..=high).map(|i| format!("{stem}{i:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> String {
        text.parse::<Bind>().map_or_else(|e| e.to_string(), |b| format!("{} = {}", b.input, b.columns.join(" ")))
    }

    #[test]
    fn columns_and_ranges_are_listed() {
        assert_eq!(check("ids=user"), "ids = user");
        assert_eq!(check("x=a,b"), "x = a b");
        assert_eq!(check("dense=I8..I11,I1"), "dense = I8 I9 I10 I11 I1");
        assert_eq!(check("c=C08..C10"), "c = C08 C09 C10");
        assert_eq!(check("c=2..3"), "c = 2 3");
        assert_eq!(check("x=a=b"), "x = a=b");
    }

    #[test]
    fn what_is_no_binding_is_refused() {
        assert_eq!(check("x"), "binding \"x\": expected INPUT=COLUMN[,COLUMN…]");
        assert_eq!(check("=a"), "binding \"=a\": an input without a name");
        assert_eq!(check("x=a,,b"), "binding \"x=a,,b\": a column without a name");
        assert!(check("x=I3..I1").contains("is empty or too long"));
        assert!(check("x=a1..b3").contains("differ in the number at their end"));
        assert!(check("x=a..b").contains("differ in the number at their end"));
        assert!(check("x=c0..c99999999999").contains("too long"));
        assert!(check("x=c00..c100").contains("same number of digits"));
    }
}
