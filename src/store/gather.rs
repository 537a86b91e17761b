//! Copies rows from scattered places into one block, asking the memory for each row well before it is copied.

use crate::tensor::{AHEAD, prefetch};

/// Copies row `i` from `locate(i)` to `out[i * stride + offset..]`, `width` bytes each, for `i` below `count`.
///
/// # Errors
/// The first `i` whose row is `None` or not `width` bytes long, or does not fit `out`.
pub(super) fn gather<'a>(
    out: &mut [u8],
    (stride, offset, width): (usize, usize, usize),
    count: usize,
    locate: impl Fn(usize) -> Option<&'a [u8]>,
) -> Result<(), usize> {
    if offset == 0 && stride == width {
        // A width that is known when the loop is compiled makes each copy a few moves.
        return match width {
            0 => Ok(()),
            4 => packed::<4>(out, count, locate),
            8 => packed::<8>(out, count, locate),
            16 => packed::<16>(out, count, locate),
            32 => packed::<32>(out, count, locate),
            64 => packed::<64>(out, count, locate),
            128 => packed::<128>(out, count, locate),
            256 => packed::<256>(out, count, locate),
            _ => strided(out, (stride, offset, width), count, locate),
        };
    }
    strided(out, (stride, offset, width), count, locate)
}

/// The rows that come next, each located and asked for [`AHEAD`] rows before it is copied.
pub(super) struct Coming<'a, L> {
    rows: [&'a [u8]; AHEAD],
    width: usize,
    count: usize,
    locate: L,
}

impl<'a, L: Fn(usize) -> Option<&'a [u8]>> Coming<'a, L> {
    #[inline(always)]
    pub(super) fn new(width: usize, count: usize, locate: L) -> Result<Self, usize> {
        let mut coming = Self { rows: [&[]; AHEAD], width, count, locate };
        (0..AHEAD.min(count)).try_for_each(|i| coming.ask(i))?;
        Ok(coming)
    }

    #[inline(always)]
    fn ask(&mut self, i: usize) -> Result<(), usize> {
        let row = (self.locate)(i).filter(|r| r.len() == self.width).ok_or(i)?;
        prefetch(row);
        self.rows[i % AHEAD] = row;
        Ok(())
    }

    /// Row `i`, where all before it were taken.
    #[inline(always)]
    pub(super) fn take(&mut self, i: usize) -> Result<&'a [u8], usize> {
        let row = self.rows[i % AHEAD];
        if i + AHEAD < self.count {
            self.ask(i + AHEAD)?;
        }
        Ok(row)
    }
}

fn packed<'a, const N: usize>(out: &mut [u8], count: usize, locate: impl Fn(usize) -> Option<&'a [u8]>) -> Result<(), usize> {
    let (places, _) = out.as_chunks_mut::<N>();
    let places = places.get_mut(..count).ok_or(count)?;
    let mut coming = Coming::new(N, count, locate)?;
    for (i, place) in places.iter_mut().enumerate() {
        if let Some(row) = coming.take(i)?.first_chunk::<N>() {
            *place = *row;
        }
    }
    Ok(())
}

fn strided<'a>(
    out: &mut [u8],
    (stride, offset, width): (usize, usize, usize),
    count: usize,
    locate: impl Fn(usize) -> Option<&'a [u8]>,
) -> Result<(), usize> {
    let mut coming = Coming::new(width, count, locate)?;
    for i in 0..count {
        let row = coming.take(i)?;
        let from = i * stride + offset;
        out.get_mut(from..from + width).ok_or(i)?.copy_from_slice(row);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_any_width_arrive_in_order() {
        for width in [0usize, 1, 3, 4, 8, 12, 16, 32, 64, 100, 128, 256, 1000] {
            let table: Vec<u8> = (0..50 * width).map(|i| (i % 251) as u8).collect();
            for count in [0usize, 1, 15, 16, 17, 100] {
                let row = |i: usize| (i * 7) % 50;
                let mut out = vec![0; count * width];
                gather(&mut out, (width, 0, width), count, |i| table.get(row(i) * width..(row(i) + 1) * width)).unwrap();
                let want: Vec<u8> = (0..count).flat_map(|i| table[row(i) * width..(row(i) + 1) * width].to_vec()).collect();
                assert_eq!(out, want, "{count} rows of {width}");
            }
        }
    }

    #[test]
    fn columns_go_to_their_place() {
        let mut out = vec![9u8; 3 * 5];
        gather(&mut out, (5, 2, 2), 3, |i| Some([&[1u8, 2][..], &[3, 4], &[5, 6]][i])).unwrap();
        assert_eq!(out, [9, 9, 1, 2, 9, 9, 9, 3, 4, 9, 9, 9, 5, 6, 9]);
    }

    #[test]
    fn the_first_row_that_is_not_there_is_named() {
        let mut out = vec![0; 400];
        for missing in [0, 18, 63, 64, 99] {
            assert_eq!(gather(&mut out, (4, 0, 4), 100, |i| (i < missing).then_some(&[0; 4][..])), Err(missing));
        }
        assert_eq!(gather(&mut out, (5, 0, 5), 16, |i| (i != 3).then_some(&[0; 5][..])), Err(3));
    }
}
