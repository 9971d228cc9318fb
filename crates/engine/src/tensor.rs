//! Plain matrices of activations.

use pt_kernels::attention::{Rows, RowsMut};
use pt_kernels::elem::{Elem, widen};
use pt_kernels::gemm::{Output, Precision, Residual, Values};

use crate::device::{Array, DeviceRef, Host, Kernel, Storage};

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

    /// How arrays of this type are stored.
    pub fn storage(self) -> Storage {
        match self {
            Dtype::F32 => Storage::F32,
            Dtype::Bf16 => Storage::Bf16,
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
    array: Array,
}

/// Runs `$body` with `$slice` bound to the elements, whatever their type. For kernels on the CPU.
macro_rules! with_elems {
    ($tensor:expr, |$slice:ident| $body:expr) => {
        match $tensor.open() {
            $crate::device::Host::F32($slice) => $body,
            $crate::device::Host::Bf16($slice) => $body,
            _ => unreachable!("activations are floating point"),
        }
    };
    (mut $tensor:expr, |$slice:ident| $body:expr) => {
        match $tensor.open_mut() {
            $crate::device::Host::F32($slice) => $body,
            $crate::device::Host::Bf16($slice) => $body,
            _ => unreachable!("activations are floating point"),
        }
    };
}
pub(crate) use with_elems;

impl Tensor {
    /// A matrix of unspecified content, to be written whole.
    pub(crate) fn dirty(device: DeviceRef, dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        Tensor { rows, cols, array: device.alloc(dtype.storage(), rows * cols) }
    }

    /// A matrix of zeros.
    pub fn zeros(device: DeviceRef, dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        Tensor { rows, cols, array: device.zeros(dtype.storage(), rows * cols) }
    }

    /// A copy of host values, rounded to `dtype`, on the CPU.
    ///
    /// # Panics
    /// If there are not `rows * cols` values.
    pub fn from_f32(values: &[f32], rows: usize, cols: usize, dtype: Dtype) -> Tensor {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] matrix");
        let array = match dtype {
            Dtype::F32 => Array::from_f32(values),
            Dtype::Bf16 => Array::bf16_from_f32(values),
        };
        Tensor { rows, cols, array }
    }

    /// A matrix that a kernel made in host memory, as an array of the device it runs for.
    pub(crate) fn of_host(device: DeviceRef, values: Host, rows: usize, cols: usize) -> Tensor {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] matrix");
        Tensor { rows, cols, array: device.place(values) }
    }

    /// Where it is.
    pub fn device(&self) -> DeviceRef {
        self.array.device()
    }

    /// The same values on `device`.
    #[must_use]
    pub fn to_device(self, device: DeviceRef) -> Tensor {
        Tensor { array: self.array.to_device(device), ..self }
    }

    /// A host copy of all values.
    pub fn to_f32(&self) -> Vec<f32> {
        self.array.to_f32()
    }

    /// A host copy of one row.
    pub fn row_to_f32(&self, row: usize) -> Vec<f32> {
        self.array.part_to_f32(self.row_range(row))
    }

    fn row_range(&self, row: usize) -> std::ops::Range<usize> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        row * self.cols..(row + 1) * self.cols
    }

    /// The elements, for kernels on the CPU.
    pub(crate) fn open(&self) -> &Host {
        self.array.open()
    }

    /// The same, to change.
    pub(crate) fn open_mut(&mut self) -> &mut Host {
        self.array.open_mut()
    }

    /// The values in `f32`, for kernels on the CPU.
    pub(crate) fn read(&self) -> Vec<f32> {
        self.open().to_f32()
    }

    /// The values of one row in `f32`, for kernels on the CPU.
    pub(crate) fn read_row(&self, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.cols];
        let range = self.row_range(row);
        with_elems!(self, |values| widen(&values[range], &mut out));
        out
    }

    /// A copy to work on, for kernels on the CPU.
    pub(crate) fn copy_open(&self) -> Tensor {
        Tensor { array: self.open().clone().into(), ..*self }
    }

    /// The elements as they are stored.
    pub(crate) fn array(&self) -> &Array {
        &self.array
    }

    /// The same, to change.
    pub(crate) fn array_mut(&mut self) -> &mut Array {
        &mut self.array
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
        match self.array.storage() {
            Storage::Bf16 => Dtype::Bf16,
            _ => Dtype::F32,
        }
    }

    pub(crate) fn values(&self) -> Values<'_> {
        self.values_from(0)
    }

    pub(crate) fn values_from(&self, col: usize) -> Values<'_> {
        match self.open() {
            Host::F32(values) => Values::F32(&values[col.min(values.len())..]),
            Host::Bf16(values) => Values::Bf16(&values[col.min(values.len())..]),
            _ => unreachable!("activations are floating point"),
        }
    }

    pub(crate) fn output_from(&mut self, col: usize) -> Output<'_> {
        let ld = self.cols;
        match self.open_mut() {
            Host::F32(values) => Output::F32(&mut values[col..], ld),
            Host::Bf16(values) => Output::Bf16(&mut values[col..], ld),
            _ => unreachable!("activations are floating point"),
        }
    }

    pub(crate) fn as_residual(&self) -> Residual<'_> {
        match self.open() {
            Host::F32(values) => Residual::F32(values, self.cols),
            Host::Bf16(values) => Residual::Bf16(values, self.cols),
            _ => unreachable!("activations are floating point"),
        }
    }

    pub(crate) fn rows_from(&self, col: usize) -> Rows<'_> {
        match self.open() {
            Host::F32(values) => Rows::F32(&values[col.min(values.len())..], self.cols),
            Host::Bf16(values) => Rows::Bf16(&values[col.min(values.len())..], self.cols),
            _ => unreachable!("activations are floating point"),
        }
    }

    pub(crate) fn rows_mut(&mut self) -> RowsMut<'_> {
        let ld = self.cols;
        match self.open_mut() {
            Host::F32(values) => RowsMut::F32(values, ld),
            Host::Bf16(values) => RowsMut::Bf16(values, ld),
            _ => unreachable!("activations are floating point"),
        }
    }

    /// `self += other`, rounded once per element.
    pub(crate) fn add_assign(&mut self, other: &Tensor) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "shapes of a sum");
        self.device().run(&mut AddAssign { sum: self, other });
    }
}

struct AddAssign<'a> {
    sum: &'a mut Tensor,
    other: &'a Tensor,
}

impl Kernel for AddAssign<'_> {
    fn name(&self) -> &'static str {
        "add_assign"
    }

    fn cpu(&mut self) {
        match (self.sum.open_mut(), self.other.open()) {
            (Host::F32(a), Host::F32(b)) => add_into(a, b),
            (Host::Bf16(a), Host::Bf16(b)) => add_into(a, b),
            _ => panic!("a sum of two storage types"),
        }
    }
}

fn add_into<E: Elem>(a: &mut [E], b: &[E]) {
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
