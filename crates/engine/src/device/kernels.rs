//! Kernels that belong to no operation: filling, copying, widening.

use half::bf16;

use super::{Array, Host, Kernel, Storage};

/// Runs `$body` with slices of one element type bound to the elements of one array to change and one to read.
macro_rules! with_pair {
    ($to:expr, $from:expr, |$a:ident, $b:ident| $body:expr) => {
        match ($to, $from) {
            (Host::F32($a), Host::F32($b)) => $body,
            (Host::Bf16($a), Host::Bf16($b)) => $body,
            (Host::U8($a), Host::U8($b)) => $body,
            (to, from) => panic!("a copy of {} into {}", from.storage().name(), to.storage().name()),
        }
    };
}

struct FillZeros<'a>(&'a mut Array);

impl Kernel for FillZeros<'_> {
    fn name(&self) -> &'static str {
        "fill_zeros"
    }

    fn cpu(&mut self) {
        match self.0.open_mut() {
            Host::F32(values) => values.fill(0.0),
            Host::Bf16(values) => values.fill(bf16::ZERO),
            Host::U8(values) => values.fill(0),
            Host::Nf4(_) | Host::Int8(_) => unreachable!("quantised values never change"),
        }
    }
}

/// Makes all elements zero.
pub(crate) fn fill_zeros(array: &mut Array) {
    array.device().run(&mut FillZeros(array));
}

struct Widen<'a> {
    from: &'a Array,
    to: &'a mut Array,
}

impl Kernel for Widen<'_> {
    fn name(&self) -> &'static str {
        "widen"
    }

    fn cpu(&mut self) {
        match self.from.open() {
            Host::F32(from) => self.to.open_mut().f32s_mut().copy_from_slice(from),
            Host::Bf16(from) => pt_kernels::elem::widen(from, self.to.open_mut().f32s_mut()),
            other => panic!("{} values are not widened in place", other.storage().name()),
        }
    }
}

/// A copy in `f32`, on the same device.
pub(crate) fn widen(from: &Array) -> Array {
    let mut to = from.device().alloc(Storage::F32, from.len());
    from.device().run(&mut Widen { from, to: &mut to });
    to
}

struct CopyPrefix<'a> {
    from: &'a Array,
    to: &'a mut Array,
    n: usize,
}

impl Kernel for CopyPrefix<'_> {
    fn name(&self) -> &'static str {
        "copy_prefix"
    }

    fn cpu(&mut self) {
        let n = self.n;
        with_pair!(self.to.open_mut(), self.from.open(), |to, from| to[..n].copy_from_slice(&from[..n]));
    }
}

/// Copies the first `n` elements to the front of an array of the same device.
pub(crate) fn copy_prefix(from: &Array, to: &mut Array, n: usize) {
    to.device().run(&mut CopyPrefix { from, to, n });
}

struct CopyWithin<'a> {
    array: &'a mut Array,
    from: usize,
    to: usize,
    n: usize,
}

impl Kernel for CopyWithin<'_> {
    fn name(&self) -> &'static str {
        "copy_within"
    }

    fn cpu(&mut self) {
        let (source, to) = (self.from..self.from + self.n, self.to);
        match self.array.open_mut() {
            Host::F32(values) => values.copy_within(source, to),
            Host::Bf16(values) => values.copy_within(source, to),
            Host::U8(values) => values.copy_within(source, to),
            Host::Nf4(_) | Host::Int8(_) => unreachable!("quantised values never change"),
        }
    }
}

/// Copies `n` elements from `from ..` to `to ..` of the same array.
pub(crate) fn copy_within(array: &mut Array, from: usize, to: usize, n: usize) {
    array.device().run(&mut CopyWithin { array, from, to, n });
}

struct CopyColumns<'a> {
    from: &'a Array,
    /// First row, first column and row length of the source.
    source: (usize, usize, usize),
    to: &'a mut Array,
    width: usize,
    rows: &'a [u32],
}

impl Kernel for CopyColumns<'_> {
    fn name(&self) -> &'static str {
        "copy_columns"
    }

    fn cpu(&mut self) {
        let ((first, col, ld), width) = (self.source, self.width);
        with_pair!(self.to.open_mut(), self.from.open(), |to, from| for (i, &row) in
            self.rows.iter().enumerate()
        {
            let at = (first + i) * ld + col;
            let row = row as usize;
            to[row * width..(row + 1) * width].copy_from_slice(&from[at..at + width]);
        });
    }
}

/// Copies columns `col .. col + width` of rows `first ..` of a matrix `[_, ld]` to the given rows of a matrix `[_, width]`;
/// `source` is `(first, col, ld)`.
pub(crate) fn copy_columns(
    from: &Array,
    source: (usize, usize, usize),
    to: &mut Array,
    width: usize,
    rows: &[u32],
) {
    to.device().run(&mut CopyColumns { from, source, to, width, rows });
}
