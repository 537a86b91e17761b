//! Sliding windows, which convolution and pooling share: their attributes, output dims, and the input positions under them.

use super::OpError;
use crate::invalid;
use crate::ir::{Attrs, Dim};
use std::ops::Range;

/// Sizes above this are refused, so that sums and products of positions cannot overflow.
const LIMIT: i64 = 1 << 40;

/// How pads are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoPad {
    /// They are given.
    NotSet,
    /// As many outputs as strides fit the input; the odd pad at the end.
    SameUpper,
    /// The same; the odd pad at the start.
    SameLower,
    /// None.
    Valid,
}

/// The attributes of a sliding window. Lists that are left out mean 1 (pads: 0) everywhere.
#[derive(Debug, Clone)]
pub struct Window {
    /// Kernel dims, if given.
    pub kernel: Option<Vec<usize>>,
    strides: Option<Vec<usize>>,
    dilations: Option<Vec<usize>>,
    pads: Option<Vec<i64>>,
    /// How pads are found.
    pub auto_pad: AutoPad,
    ceil: bool,
}

/// A window along one spatial axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Size of the input.
    pub input: usize,
    /// Size of the kernel.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Step between the elements of the kernel.
    pub dilation: usize,
    /// Pad before the input.
    pub head: i64,
    /// Pad after the input.
    pub tail: i64,
    /// Size of the output.
    pub output: usize,
}

/// The part of a window that lies inside the input.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// First input position.
    pub first: usize,
    /// How many positions, each a dilation further.
    pub count: usize,
}

fn sizes(attrs: &Attrs, name: &str, least: i64) -> Result<Option<Vec<i64>>, OpError> {
    let Some(list) = attrs.ints(name)? else { return Ok(None) };
    match list.iter().find(|&&x| x < least || x > LIMIT) {
        Some(x) => invalid!("attribute \"{name}\": {x} is out of range"),
        None => Ok(Some(list.to_vec())),
    }
}

fn positive(attrs: &Attrs, name: &str) -> Result<Option<Vec<usize>>, OpError> {
    Ok(sizes(attrs, name, 1)?.map(|list| list.into_iter().map(|x| x as usize).collect()))
}

impl Window {
    /// Reads `auto_pad`, `ceil_mode`, `dilations`, `kernel_shape`, `pads` and `strides`.
    ///
    /// # Errors
    /// A value out of range.
    pub fn read(attrs: &Attrs) -> Result<Self, OpError> {
        let auto_pad = match attrs.string_or("auto_pad", "NOTSET")? {
            "NOTSET" | "" => AutoPad::NotSet,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            "VALID" => AutoPad::Valid,
            other => invalid!("attribute \"auto_pad\": unknown value \"{other}\""),
        };
        Ok(Self {
            kernel: positive(attrs, "kernel_shape")?,
            strides: positive(attrs, "strides")?,
            dilations: positive(attrs, "dilations")?,
            pads: sizes(attrs, "pads", 0)?,
            auto_pad,
            ceil: attrs.int_or("ceil_mode", 0)? != 0,
        })
    }

    /// Whether pads are given.
    pub fn has_pads(&self) -> bool {
        self.pads.is_some()
    }

    /// The window along each axis, with the given pads; `output` stays 0.
    ///
    /// # Errors
    /// A list of another length, or a size that is out of range.
    pub fn base(&self, input: &[usize], kernel: &[usize]) -> Result<Vec<Axis>, OpError> {
        let rank = input.len();
        if let Some(k) = self.kernel.as_deref().filter(|k| *k != kernel) {
            invalid!("attribute \"kernel_shape\": expected {kernel:?}, found {k:?}");
        }
        for (name, list) in [("kernel_shape", Some(kernel)), ("strides", self.strides.as_deref()), ("dilations", self.dilations.as_deref())]
        {
            if let Some(list) = list.filter(|l| l.len() != rank) {
                invalid!("attribute \"{name}\": expected {rank} values, found {}", list.len());
            }
        }
        if let Some(pads) = self.pads.as_ref().filter(|p| p.len() != 2 * rank) {
            invalid!("attribute \"pads\": expected {} values, found {}", 2 * rank, pads.len());
        }
        let at = |list: &Option<Vec<usize>>, i: usize| list.as_ref().map_or(1, |l| l[i]);
        let pad = |i: usize| self.pads.as_ref().map_or(0, |p| p[i]);
        let axis = |i: usize| Axis {
            input: input[i],
            kernel: kernel[i],
            stride: at(&self.strides, i),
            dilation: at(&self.dilations, i),
            head: pad(i),
            tail: pad(rank + i),
            output: 0,
        };
        let axes: Vec<Axis> = (0..rank).map(axis).collect();
        for a in &axes {
            let extent = (a.kernel as i64).saturating_sub(1).saturating_mul(a.dilation as i64);
            if a.kernel == 0 || a.input as u64 > LIMIT as u64 || extent > LIMIT {
                invalid!("a window of {} elements, {} apart, over {} elements is out of range", a.kernel, a.dilation, a.input);
            }
        }
        Ok(axes)
    }

    /// The window along each axis of an input with these spatial dims.
    ///
    /// # Errors
    /// A list of another length, or a kernel that is larger than the padded input.
    pub fn axes(&self, input: &[usize], kernel: &[usize]) -> Result<Vec<Axis>, OpError> {
        let mut axes = self.base(input, kernel)?;
        for a in &mut axes {
            self.finish(a)?;
        }
        Ok(axes)
    }

    fn finish(&self, a: &mut Axis) -> Result<(), OpError> {
        let (input, stride, extent) = (a.input as i64, a.stride as i64, a.extent());
        match self.auto_pad {
            AutoPad::SameUpper | AutoPad::SameLower => {
                let output = input.div_euclid(stride) + i64::from(input % stride != 0);
                let needed = ((output - 1).max(0) * stride + extent - input).max(0);
                let less = needed / 2;
                (a.head, a.tail) = if self.auto_pad == AutoPad::SameUpper { (less, needed - less) } else { (needed - less, less) };
                a.output = output as usize;
                return Ok(());
            }
            AutoPad::Valid => (a.head, a.tail) = (0, 0),
            AutoPad::NotSet => {}
        }
        let room = input + a.head + a.tail - extent;
        if room < 0 {
            invalid!("a window of {extent} elements does not fit {} with pads {} and {}", a.input, a.head, a.tail);
        }
        let mut output = room / stride + 1;
        if self.ceil && self.auto_pad == AutoPad::NotSet && room % stride != 0 && output * stride < input + a.head {
            // One more, if its window starts before the pad at the end.
            output += 1;
        }
        a.output = output as usize;
        Ok(())
    }

    /// The spatial dims of the output, as far as they follow from those of the input.
    ///
    /// # Errors
    /// As [`Window::axes`].
    pub fn infer(&self, input: &[Dim], kernel: &[Option<usize>]) -> Result<Vec<Dim>, OpError> {
        let same = matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower);
        // A known stand-in for what is unknown, so that the lists are checked; its own results are not used.
        let sizes: Vec<usize> = input.iter().map(|d| d.known().unwrap_or(1)).collect();
        let kernels: Vec<usize> = (0..input.len()).map(|i| kernel.get(i).copied().flatten().unwrap_or(1)).collect();
        let unknown = kernel.iter().any(Option::is_none);
        let whole = Window { kernel: if unknown { None } else { self.kernel.clone() }, ..self.clone() };
        let mut axes = whole.base(&sizes, &kernels)?;
        axes.iter_mut()
            .enumerate()
            .map(|(i, a)| match &input[i] {
                Dim::Known(_) if same || kernel.get(i).is_some_and(Option::is_some) => {
                    self.finish(a)?;
                    Ok(Dim::Known(a.output))
                }
                d if same && a.stride == 1 => Ok(d.clone()),
                _ => Ok(Dim::Unknown),
            })
            .collect()
    }
}

impl Axis {
    /// The input positions that the dilated kernel spans.
    pub fn extent(&self) -> i64 {
        (self.kernel as i64 - 1) * self.dilation as i64 + 1
    }

    /// The input position under element 0 of the kernel, for output position `o`; negative in the pad.
    pub fn start(&self, o: usize) -> i64 {
        o as i64 * self.stride as i64 - self.head
    }

    /// The part of the window of output position `o` that lies inside the input.
    pub fn span(&self, o: usize) -> Span {
        let (start, dilation) = (self.start(o), self.dilation as i64);
        let skip = if start < 0 { (-start + dilation - 1) / dilation } else { 0 };
        let first = start + skip * dilation;
        let inside = if first < self.input as i64 { (self.input as i64 - first + dilation - 1) / dilation } else { 0 };
        let count = inside.min(self.kernel as i64 - skip).max(0);
        Span { first: first.max(0) as usize, count: count as usize }
    }

    /// How many elements of the window of output position `o` lie inside the input or its pads.
    pub fn padded(&self, o: usize) -> usize {
        let left = self.input as i64 + self.tail - self.start(o);
        let dilation = self.dilation as i64;
        ((left + dilation - 1) / dilation).clamp(0, self.kernel as i64) as usize
    }

    /// The output positions in `range` whose kernel element `k` lies inside the input.
    fn inside(&self, k: usize, range: Range<usize>) -> Range<usize> {
        let (offset, stride) = (k as i64 * self.dilation as i64 - self.head, self.stride as i64);
        let first = if offset < 0 { (-offset + stride - 1) / stride } else { 0 };
        let past = self.input as i64 - offset;
        let past = if past > 0 { (past + stride - 1) / stride } else { 0 };
        let first = (first as usize).clamp(range.start, range.end);
        first..(past as usize).clamp(first, range.end)
    }
}

/// Goes on to the next position of `dims` in row-major order; false after the last.
pub fn advance(index: &mut [usize], dims: &[usize]) -> bool {
    for d in (0..dims.len()).rev() {
        index[d] += 1;
        if index[d] < dims[d] {
            return true;
        }
        index[d] = 0;
    }
    false
}

/// A position in a flat row-major array of `dims` as an index.
pub fn unravel(mut position: usize, dims: &[usize]) -> Vec<usize> {
    let mut index = vec![0; dims.len()];
    for d in (0..dims.len()).rev() {
        index[d] = position % dims[d].max(1);
        position /= dims[d].max(1);
    }
    index
}

/// Visits the input positions under kernel element `k` for the flat output positions in `range`, by runs along the last
/// axis: `f(first output position, count, first input position)`; the next input positions are a stride apart. Output
/// positions whose element lies in a pad are left out. `strides` are those of the input plane.
pub fn for_each_run(axes: &[Axis], strides: &[usize], k: &[usize], range: Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
    let Some((last, outer)) = axes.split_last() else { return };
    if range.is_empty() {
        return;
    }
    let dims: Vec<usize> = axes.iter().map(|a| a.output).collect();
    let mut index = unravel(range.start, &dims);
    let mut at = range.start;
    let n = outer.len();
    while at < range.end {
        let from = index[n];
        let to = last.output.min(from + range.end - at);
        let mut base = Some(0);
        for (d, a) in outer.iter().enumerate() {
            let position = a.start(index[d]) + (k[d] * a.dilation) as i64;
            base = base.filter(|_| position >= 0 && position < a.input as i64).map(|b| b + position as usize * strides[d]);
        }
        if let Some(base) = base {
            let run = last.inside(k[n], from..to);
            if !run.is_empty() {
                let position = last.start(run.start) + (k[n] * last.dilation) as i64;
                f(at + run.start - from, run.len(), base + position as usize);
            }
        }
        at += to - from;
        index[n] = 0;
        advance(&mut index[..n], &dims[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(attrs: Attrs, input: usize, kernel: usize) -> Result<Axis, OpError> {
        Window::read(&attrs)?.axes(&[input], &[kernel]).map(|a| a[0])
    }

    #[test]
    fn same_puts_the_odd_pad_where_it_is_told() {
        let a = axis(Attrs::new().with("auto_pad", "SAME_UPPER").with("strides", vec![2i64]), 5, 4).unwrap();
        assert_eq!((a.head, a.tail, a.output), (1, 2, 3));
        let a = axis(Attrs::new().with("auto_pad", "SAME_LOWER").with("strides", vec![2i64]), 5, 4).unwrap();
        assert_eq!((a.head, a.tail, a.output), (2, 1, 3));
    }

    #[test]
    fn ceil_adds_a_window_only_if_it_starts_inside() {
        let ceil = || Attrs::new().with("ceil_mode", 1).with("strides", vec![2i64]);
        assert_eq!(axis(ceil(), 4, 3).unwrap().output, 2);
        assert_eq!(axis(ceil(), 2, 1).unwrap().output, 1);
    }

    #[test]
    fn sizes_that_would_overflow_are_refused() {
        assert!(axis(Attrs::new().with("pads", vec![1i64 << 62, 1 << 62]), 4, 1).is_err());
        assert!(axis(Attrs::new().with("dilations", vec![1i64 << 39]), 4, 1 << 39).is_err());
        assert!(axis(Attrs::new().with("strides", vec![0i64]), 4, 1).is_err());
        assert!(axis(Attrs::new(), 4, 5).is_err());
    }

    #[test]
    fn runs_leave_pads_out() {
        let a = axis(Attrs::new().with("pads", vec![1i64, 1]), 3, 3).unwrap();
        let mut runs = Vec::new();
        for k in 0..3 {
            for_each_run(&[a], &[1], &[k], 0..3, |o, n, i| runs.push((k, o, n, i)));
        }
        assert_eq!(runs, [(0, 1, 2, 0), (1, 0, 3, 0), (2, 0, 2, 1)]);
        assert_eq!((a.span(0).first, a.span(0).count), (0, 2));
    }
}
