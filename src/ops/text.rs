//! Ops over strings.

use super::transpose::broadcast_to;
use super::util::broadcast;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, infer, one};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, Shape, Tensor, checked_len, fits_memory};
use regex::RegexBuilder;
use std::collections::HashSet;

const NORMALIZER: &[&str] = &["case_change_action", "is_case_sensitive", "locale", "stopwords"];

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("RegexFullMatch", &[20]).attrs(&["pattern"]).kernel(regex_full_match).infer(infer_regex_full_match),
    OpDef::new("StringConcat", &[20]).inputs(2, 2).kernel(concat).infer(infer::broadcast),
    OpDef::new("StringNormalizer", &[10]).attrs(NORMALIZER).kernel(normalizer).infer(infer_normalizer),
    OpDef::new("StringSplit", &[20]).outputs(2, 2).attrs(&["delimiter", "maxsplit"]).kernel(split).infer(infer_split),
];

/// Bytes that a compiled pattern may take.
const PATTERN_BYTES: usize = 4 << 20;

fn concat(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| {
        let (a, b) = (args.tensor(0)?, args.tensor(1)?);
        let shape = broadcast(&[a.shape(), b.shape()])?;
        let (a, b) = (broadcast_to(a, &shape)?, broadcast_to(b, &shape)?);
        let joined = a.as_slice::<String>()?.iter().zip(b.as_slice::<String>()?).map(|(a, b)| format!("{a}{b}")).collect();
        one(Tensor::new(shape, joined)?)
    }))
}

fn regex_full_match(cx: &OpCtx) -> Result<Kernel, OpError> {
    let Some(pattern) = cx.attrs.string("pattern")? else { invalid!("attribute \"pattern\" is missing") };
    let compile = |p: &str| match RegexBuilder::new(p).size_limit(PATTERN_BYTES).build() {
        Ok(regex) => Ok(regex),
        Err(regex::Error::CompiledTooBig(_)) => invalid!("pattern {pattern:?} is too large"),
        // The last line names the fault; the others draw where it is.
        Err(e) => invalid!("pattern {pattern:?}: {}", e.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ")),
    };
    // Alone first, so that a stray parenthesis does not pair with those put around it.
    compile(pattern)?;
    let regex = compile(&format!(r"\A(?:{pattern})\z"))?;
    Ok(Box::new(move |args: Args| {
        let x = args.tensor(0)?;
        one(Tensor::new(x.shape(), super::util::map(x.as_slice::<String>()?, |s| regex.is_match(s)))?)
    }))
}

fn infer_regex_full_match(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(Some(DType::Bool), cx.shape(0).map(<[Dim]>::to_vec))])
}

/// The parts of a text: at most `max + 1` of them, by a delimiter, or by runs of white space where it is empty.
fn parts<'a>(text: &'a str, delimiter: &str, max: Option<usize>) -> Vec<&'a str> {
    if !delimiter.is_empty() {
        return match max {
            Some(max) => text.splitn(max.saturating_add(1), delimiter).collect(),
            None => text.split(delimiter).collect(),
        };
    }
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = if max == Some(out.len()) { None } else { rest.find(char::is_whitespace) };
        let (part, tail) = rest.split_at(end.unwrap_or(rest.len()));
        out.push(part);
        rest = tail.trim_start();
    }
    out
}

fn split(cx: &OpCtx) -> Result<Kernel, OpError> {
    let delimiter = cx.attrs.string_or("delimiter", "")?.to_owned();
    let max = cx.attrs.int("maxsplit")?.and_then(|m| usize::try_from(m).ok());
    Ok(Box::new(move |args: Args| {
        let x = args.tensor(0)?;
        let rows: Vec<Vec<&str>> = x.as_slice::<String>()?.iter().map(|s| parts(s, &delimiter, max)).collect();
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let counts = Tensor::new(x.shape(), rows.iter().map(|r| r.len() as i64).collect())?;
        let mut shape = x.shape().clone();
        shape.push(width);
        let mut all = Vec::new();
        let len = checked_len(&shape).unwrap_or(usize::MAX);
        if !fits_memory(len.saturating_mul(size_of::<String>())) || all.try_reserve_exact(len).is_err() {
            invalid!("{shape} strings do not fit memory");
        }
        for row in rows {
            all.extend(row.iter().map(|s| (*s).to_owned()));
            all.extend((row.len()..width).map(|_| String::new()));
        }
        Ok(Outputs::from_iter([Tensor::new(shape, all)?.into(), counts.into()]))
    }))
}

fn infer_split(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dims = cx.shape(0).map(<[Dim]>::to_vec);
    let wide = dims.clone().map(|mut d| {
        d.push(Dim::Unknown);
        d
    });
    Ok(vec![Fact::partial(Some(DType::String), wide), Fact::partial(Some(DType::I64), dims)])
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Lower,
    Upper,
    Keep,
}

impl Case {
    fn of(self, s: &str) -> String {
        match self {
            Case::Lower => s.to_lowercase(),
            Case::Upper => s.to_uppercase(),
            Case::Keep => s.to_owned(),
        }
    }
}

fn normalizer(cx: &OpCtx) -> Result<Kernel, OpError> {
    let case = match cx.attrs.string_or("case_change_action", "NONE")? {
        "LOWER" => Case::Lower,
        "UPPER" => Case::Upper,
        "NONE" => Case::Keep,
        other => invalid!("case_change_action must be LOWER, UPPER or NONE, found {other:?}"),
    };
    // Where case does not count, words are compared in lower case.
    let compared = if cx.attrs.int_or("is_case_sensitive", 0)? != 0 { Case::Keep } else { Case::Lower };
    let stop: HashSet<String> = cx.attrs.strings("stopwords")?.unwrap_or_default().iter().map(|w| compared.of(w)).collect();
    Ok(Box::new(move |args: Args| {
        let x = args.tensor(0)?;
        let mut shape: Shape = match x.shape()[..] {
            [_] | [1, _] => x.shape().clone(),
            _ => invalid!("input 0 must have shape [C] or [1,C], found {}", x.shape()),
        };
        let words = x.as_slice::<String>()?.iter();
        let mut kept: Vec<String> = words.filter(|w| stop.is_empty() || !stop.contains(&compared.of(w))).map(|w| case.of(w)).collect();
        if kept.is_empty() {
            kept.push(String::new());
        }
        let last = shape.len() - 1;
        shape[last] = kept.len();
        one(Tensor::new(shape, kept)?)
    }))
}

fn infer_normalizer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dims = cx.shape(0).map(|s| {
        let mut dims = s.to_vec();
        if let Some(last) = dims.last_mut() {
            *last = Dim::Unknown;
        }
        dims
    });
    Ok(vec![Fact::partial(Some(DType::String), dims)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::{run, run_values};

    fn texts(v: &[&str]) -> Tensor {
        Tensor::vector(v.iter().map(|s| (*s).to_owned()).collect())
    }

    #[test]
    fn concat_broadcasts() {
        let b = Tensor::scalar("!".to_owned());
        assert_eq!(run("StringConcat", 20, Attrs::new(), &[texts(&["a", "b"]), b]).unwrap(), texts(&["a!", "b!"]));
    }

    #[test]
    fn a_pattern_matches_the_whole_text() {
        let of = |pattern: &str| run("RegexFullMatch", 20, Attrs::new().with("pattern", pattern), &[texts(&["ab", "abc", "a\n"])]);
        assert_eq!(of("a|ab").unwrap(), Tensor::vector(vec![true, false, false]));
        assert_eq!(of(r"a\n?b?c?").unwrap(), Tensor::vector(vec![true, true, true]));
        assert!(of("a)|(b").is_err());
        assert!(of(r"((\w{100}){100}){100}").is_err());
    }

    #[test]
    fn white_space_splits_in_runs_and_a_delimiter_each_time() {
        assert_eq!(parts(" a  b c ", "", None), ["a", "b", "c"]);
        assert_eq!(parts(" a  b c ", "", Some(1)), ["a", "b c "]);
        assert_eq!(parts("", "", None), [""; 0]);
        assert_eq!(parts("a,,b", ",", None), ["a", "", "b"]);
        assert_eq!(parts("", ",", None), [""]);
        let out = run_values("StringSplit", 20, Attrs::new(), vec![Some(texts(&["a b", ""]).into())], 2).unwrap();
        let expected = Tensor::new([2, 2], ["a", "b", "", ""].map(str::to_owned).to_vec()).unwrap();
        assert_eq!(out, [expected.into(), Tensor::vector(vec![2i64, 0]).into()]);
    }

    #[test]
    fn stop_words_go_and_something_stays() {
        let attrs = Attrs::new().with("stopwords", vec!["Monday".to_owned()]).with("case_change_action", "UPPER");
        let of = |attrs: Attrs, x: &[&str]| run("StringNormalizer", 10, attrs, &[texts(x)]).unwrap();
        assert_eq!(of(attrs.clone(), &["monday", "Tuesday"]), texts(&["TUESDAY"]));
        assert_eq!(of(attrs.clone().with("is_case_sensitive", 1), &["monday", "Monday"]), texts(&["MONDAY"]));
        assert_eq!(of(attrs, &["MONDAY"]), texts(&[""]));
    }
}
