//! Plain matrices of activations.

use half::bf16;
use pt_kernels::attention::{Rows, RowsMut};
use pt_kernels::buffer::Buffer;
use pt_kernels::elem::{Elem, narrow, widen};
use pt_kernels::gemm::{Output, Precision, Residual, Values};

/// The storage type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats; all arithmetic is still done in `f32`.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// The precision matrix products of this type run in.
    pub(crate) fn precision(self) -> Precision {
        match self {
            Dtype::F32 => Precision::F32,
            Dtype::Bf16 => Precision::Bf16,
        }
    }
}

/// A row-major `[rows, cols]` matrix on one device.
#[derive(Clone, Debug)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    pub(crate) data: Data,
}

/// Where the elements are. A CUDA backend adds its variants here, and nothing above notices.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

/// Runs `$body` with `$slice` bound to the elements, whatever their type.
macro_rules! with_elems {
    ($tensor:expr, |$slice:ident| $body:expr) => {
        match &$tensor.data {
            $crate::tensor::Data::F32($slice) => $body,
            $crate::tensor::Data::Bf16($slice) => $body,
        }
    };
    (mut $tensor:expr, |$slice:ident| $body:expr) => {
        match &mut $tensor.data {
            $crate::tensor::Data::F32($slice) => $body,
            $crate::tensor::Data::Bf16($slice) => $body,
        }
    };
}
pub(crate) use with_elems;

impl Tensor {
    /// A matrix of unspecified content, to be written whole.
    pub(crate) fn dirty(dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        let data = match dtype {
            Dtype::F32 => Data::F32(Buffer::dirty(rows * cols)),
            Dtype::Bf16 => Data::Bf16(Buffer::dirty(rows * cols)),
        };
        Tensor { rows, cols, data }
    }

    /// A matrix of zeros.
    pub fn zeros(dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        let mut tensor = Tensor::dirty(dtype, rows, cols);
        with_elems!(mut tensor, |values| values.fill(Default::default()));
        tensor
    }

    /// A copy of host values, rounded to `dtype`.
    ///
    /// # Panics
    /// If there are not `rows * cols` values.
    pub fn from_f32(values: &[f32], rows: usize, cols: usize, dtype: Dtype) -> Tensor {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] matrix");
        let mut tensor = Tensor::dirty(dtype, rows, cols);
        with_elems!(mut tensor, |out| narrow(values, out));
        tensor
    }

    /// A host copy of all values.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        with_elems!(self, |values| widen(values, &mut out));
        out
    }

    /// A host copy of one row.
    pub fn row_to_f32(&self, row: usize) -> Vec<f32> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let mut out = vec![0.0; self.cols];
        with_elems!(self, |values| widen(&values[row * self.cols..(row + 1) * self.cols], &mut out));
        out
    }

    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (width).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        match self.data {
            Data::F32(_) => Dtype::F32,
            Data::Bf16(_) => Dtype::Bf16,
        }
    }

    pub(crate) fn values(&self) -> Values<'_> {
        self.values_from(0)
    }

    pub(crate) fn values_from(&self, col: usize) -> Values<'_> {
        match &self.data {
            Data::F32(values) => Values::F32(&values[col.min(values.len())..]),
            Data::Bf16(values) => Values::Bf16(&values[col.min(values.len())..]),
        }
    }

    pub(crate) fn output_from(&mut self, col: usize) -> Output<'_> {
        let ld = self.cols;
        match &mut self.data {
            Data::F32(values) => Output::F32(&mut values[col..], ld),
            Data::Bf16(values) => Output::Bf16(&mut values[col..], ld),
        }
    }

    pub(crate) fn as_residual(&self) -> Residual<'_> {
        match &self.data {
            Data::F32(values) => Residual::F32(values, self.cols),
            Data::Bf16(values) => Residual::Bf16(values, self.cols),
        }
    }

    pub(crate) fn rows_from(&self, col: usize) -> Rows<'_> {
        match &self.data {
            Data::F32(values) => Rows::F32(&values[col.min(values.len())..], self.cols),
            Data::Bf16(values) => Rows::Bf16(&values[col.min(values.len())..], self.cols),
        }
    }

    pub(crate) fn rows_mut(&mut self) -> RowsMut<'_> {
        let ld = self.cols;
        match &mut self.data {
            Data::F32(values) => RowsMut::F32(values, ld),
            Data::Bf16(values) => RowsMut::Bf16(values, ld),
        }
    }

    /// `self += other`, rounded once per element.
    pub(crate) fn add_assign(&mut self, other: &Tensor) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "shapes of a sum");
        match (&mut self.data, &other.data) {
            (Data::F32(a), Data::F32(b)) => add_into(a, b),
            (Data::Bf16(a), Data::Bf16(b)) => add_into(a, b),
            _ => panic!("a sum of two storage types"),
        }
    }
}

pub(crate) fn add_into<E: Elem>(a: &mut [E], b: &[E]) {
    use rayon::prelude::*;
    a.par_chunks_mut(1 << 14).zip(b.par_chunks(1 << 14)).for_each(|(a, b)| add_chunk(a, b));
}

pt_kernels::kernel! {
    fn add_chunk<E: Elem>(['a] a: &'a mut [E], b: &'a [E]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a = E::put(a.get() + b.get());
        }
    }
}
