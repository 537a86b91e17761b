//! The line of an id in a sparse table: `id slot unseen delta show click w0 [optimizer] w1 … [optimizer]`. An id that has
//! been shown too rarely has no `w1 …` yet.

/// How a table keeps an id, and what of it is its row. PaddlePaddle calls it the accessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accessor {
    /// SparseAccessor: the row is the vector.
    #[default]
    Sparse,
    /// CtrCommonAccessor: the row is shows, clicks and the vector.
    Ctr,
    /// CtrDoubleAccessor: as `Ctr`, with fields in another order and one number per vector for the optimizer.
    CtrDouble,
}

/// What trained a table; each keeps another number of numbers beside a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimizer {
    /// Nothing beside.
    Naive,
    /// One sum.
    AdaGrad,
    /// A sum per element.
    StdAdaGrad,
    /// Two moments per element and two powers.
    Adam,
    /// Two moments and two powers.
    SharedAdam,
}

impl Optimizer {
    const ALL: [Self; 5] = [Self::Naive, Self::AdaGrad, Self::StdAdaGrad, Self::Adam, Self::SharedAdam];

    /// Numbers beside a vector of so many.
    fn beside(self, elements: usize) -> usize {
        match self {
            Self::Naive => 0,
            Self::AdaGrad => 1,
            Self::StdAdaGrad => elements,
            Self::Adam => 2 * elements + 2,
            Self::SharedAdam => 4,
        }
    }
}

/// Where the numbers of a row are in a line.
#[derive(Debug, PartialEq)]
pub(super) struct Reader {
    columns: usize,
    accessor: Accessor,
    /// Fields of a whole line, and of one without the rest of the vector.
    whole: usize,
    short: usize,
    /// Where the rest of the vector begins.
    rest_at: usize,
}

/// Fields before the first number of the vector.
const HEAD: usize = 6;

impl Reader {
    /// The reader for lines of these numbers of fields. An error names the number of fields that it is about.
    pub(super) fn of(found: &[usize], columns: usize, accessor: Accessor, optimizer: Option<Optimizer>) -> Result<Self, (usize, String)> {
        let stats = if accessor == Accessor::Sparse { 0 } else { 2 };
        let Some(rest) = columns.checked_sub(1 + stats) else {
            return Err((0, format!("rows of {columns} are too narrow for shows, clicks and a vector: expected 3 or more")));
        };
        let layout = |first: usize, after: usize| Self {
            columns,
            accessor,
            whole: HEAD + 1 + first + rest + after,
            short: HEAD + 1 + first,
            rest_at: HEAD + 1 + first,
        };
        let mut fitting: Vec<Self> = if accessor == Accessor::CtrDouble {
            // id unseen delta show click w0 g slot, then g w1 ….
            vec![Self { columns, accessor, whole: 9 + rest, short: 8, rest_at: 9 }]
        } else {
            let same = Optimizer::ALL.into_iter().filter(|&o| optimizer.is_none_or(|wanted| wanted == o));
            same.map(|o| layout(o.beside(1), o.beside(rest))).collect()
        };
        let fits = |r: &Self| found.iter().all(|&n| n == r.whole || n == r.short);
        let stated = fitting.first().map(|r| r.whole);
        fitting.retain(fits);
        if fitting.is_empty() && optimizer.is_none() && accessor != Accessor::CtrDouble {
            // The first number and the rest of a vector may have optimizers of their own.
            let pairs = Optimizer::ALL.into_iter().flat_map(|a| Optimizer::ALL.into_iter().map(move |b| (a, b)));
            fitting = pairs.map(|(a, b)| layout(a.beside(1), b.beside(rest))).filter(fits).collect();
        }
        // Layouts that read whole lines come before those in which every line is short.
        if fitting.iter().any(|r| found.contains(&r.whole)) {
            fitting.retain(|r| found.contains(&r.whole));
        }
        let mut distinct = fitting.into_iter();
        let Some(first) = distinct.next() else {
            if found.is_empty() {
                return Ok(layout(0, 0));
            }
            let odd =
                found.iter().copied().find(|&n| Some(n) != stated && !Self::possible(n, rest, accessor)).unwrap_or(found[found.len() - 1]);
            let why = if found.len() > 2 { format!(" (lines of {found:?} fields are in one table)") } else { String::new() };
            return Err((
                odd,
                format!(
                    "expected a row of {columns} and an optimizer's numbers, found {odd} fields{why}; `--accessor` and `--optimizer` say what it is"
                ),
            ));
        };
        let whole = found.contains(&first.whole);
        if whole && distinct.any(|r| r.rest_at != first.rest_at) {
            return Err((
                first.whole,
                format!("{} fields are a row of {columns} by several optimizers: say which by `--optimizer`", first.whole),
            ));
        }
        Ok(first)
    }

    fn possible(n: usize, rest: usize, accessor: Accessor) -> bool {
        if accessor == Accessor::CtrDouble {
            return n == 8 || n == 9 + rest;
        }
        Optimizer::ALL.into_iter().any(|o| n == HEAD + 1 + o.beside(1) || n == HEAD + 1 + o.beside(1) + rest + o.beside(rest))
    }

    /// A line's key and row.
    pub(super) fn row(&self, line: &str) -> Result<(u64, Vec<f32>), String> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let key = fields.first().copied().unwrap_or_default();
        let key = key.parse::<u64>().map_err(|_| format!("id {key:?} is no number of 64 bits"))?;
        let number = |at: usize| -> Result<f32, String> {
            let text = fields.get(at).ok_or_else(|| format!("expected {} fields, found {}", self.whole, fields.len()))?;
            text.parse::<f32>().map_err(|_| format!("{text:?} is no number"))
        };
        let mut row = Vec::with_capacity(self.columns);
        let at = match self.accessor {
            Accessor::Sparse => HEAD,
            Accessor::Ctr => {
                row.extend([number(4)?, number(5)?]);
                HEAD
            }
            Accessor::CtrDouble => {
                row.extend([number(3)?, number(4)?]);
                5
            }
        };
        row.push(number(at)?);
        let rest = self.columns - row.len();
        match fields.len() {
            // Too few shows: the rest of the vector does not exist yet.
            n if n == self.short && n != self.whole => row.resize(self.columns, 0.0),
            _ => (0..rest).try_for_each(|i| number(self.rest_at + i).map(|x| row.push(x)))?,
        }
        Ok((key, row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str], columns: usize, accessor: Accessor, optimizer: Option<Optimizer>) -> Result<Vec<(u64, Vec<f32>)>, String> {
        let mut counts: Vec<usize> = lines.iter().map(|l| l.split_ascii_whitespace().count()).collect();
        counts.sort_unstable();
        counts.dedup();
        let reader = Reader::of(&counts, columns, accessor, optimizer).map_err(|e| e.1)?;
        lines.iter().map(|l| reader.row(l)).collect()
    }

    #[test]
    fn the_vector_is_found_between_the_optimizers_numbers() {
        let row = vec![(7, vec![0.5, 1.0, 2.0, 3.0, 4.0])];
        let sparse = |line: &str| read(&[line], 5, Accessor::Sparse, None).expect("a row");
        assert_eq!(sparse("7 0 0 1 1 0 0.5 1 2 3 4"), row);
        assert_eq!(sparse("7 0 0 1 1 0 0.5 9 1 2 3 4 9"), row);
        assert_eq!(sparse("7 0 0 1 1 0 0.5 9 1 2 3 4 9 9 9 9"), row);
        assert_eq!(sparse("7 0 0 1 1 0 0.5 9 9 9 9 1 2 3 4 9 9 9 9 9 9 9 9 9 9"), row);
        assert_eq!(sparse("7 0 0 1 1 0 0.5 9 9 9 9 1 2 3 4 9 9 9 9"), row);
        assert!(read(&["7 0 0 1 1 0 0.5 1 2 3 4 5 6 7"], 5, Accessor::Sparse, None).unwrap_err().contains("found 14 fields"));
        assert_eq!(read(&["18446744073709551615 0 0 1 1 0 1"], 1, Accessor::Sparse, None), Ok(vec![(u64::MAX, vec![1.0])]));
    }

    #[test]
    fn what_was_shown_too_rarely_has_the_rest_of_its_row_as_zeros() {
        let rows = read(&["1 0 0 1 1 0 0.5 9 1 2 9", "2 0 0 0 0 0 0.25 9"], 3, Accessor::Sparse, None).expect("rows");
        assert_eq!(rows, [(1, vec![0.5, 1.0, 2.0]), (2, vec![0.25, 0.0, 0.0])]);
        // Adam's short line is as long as a whole one of another optimizer: the other lines say what it is.
        let adam = ["1 0 0 1 1 0 0.5 9 9 9 9 1 2 3 9 9 9 9 9 9 9 9", "2 0 0 0 0 0 0.25 9 9 9 9"];
        assert_eq!(read(&adam, 4, Accessor::Sparse, None).expect("rows")[1].1, [0.25, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_number_of_fields_that_says_too_little_is_asked_about() {
        // A rest of 7: a sum each, or the four numbers of shared Adam twice.
        let line = "1 0 0 1 1 0 0.5 9 1 2 3 4 5 6 7 8 8 8 8 8 8 8";
        assert!(read(&[line], 8, Accessor::Sparse, None).unwrap_err().contains("--optimizer"));
        let row = |o| read(&[line], 8, Accessor::Sparse, Some(o)).expect("a row").remove(0).1;
        assert_eq!(row(Optimizer::StdAdaGrad), [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(row(Optimizer::SharedAdam)[1], 4.0);
    }

    #[test]
    fn accessors_with_shows_and_clicks_give_them_first() {
        let ctr = read(&["1 0 0 2 20 3 0.5 9 1 2 9"], 5, Accessor::Ctr, None);
        assert_eq!(ctr, Ok(vec![(1, vec![20.0, 3.0, 0.5, 1.0, 2.0])]));
        let double = read(&["1 0 2 20 3 0.5 9 44 9 1 2", "2 0 2 20 3 0.25 9 44"], 5, Accessor::CtrDouble, None);
        assert_eq!(double, Ok(vec![(1, vec![20.0, 3.0, 0.5, 1.0, 2.0]), (2, vec![20.0, 3.0, 0.25, 0.0, 0.0])]));
        assert!(read(&["1 0 0 1 1 0 1"], 2, Accessor::Ctr, None).unwrap_err().contains("too narrow"));
    }

    #[test]
    fn what_is_no_number_is_named() {
        assert!(read(&["x 0 0 1 1 0 1"], 1, Accessor::Sparse, None).unwrap_err().contains("id \"x\""));
        assert!(read(&["-1 0 0 1 1 0 1"], 1, Accessor::Sparse, None).unwrap_err().contains("id \"-1\""));
        assert!(read(&["1 0 0 1 1 0 one"], 1, Accessor::Sparse, None).unwrap_err().contains("\"one\" is no number"));
    }
}
