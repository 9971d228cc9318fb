//! Arrays: elements of one storage type on one device.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use pt_kernels::buffer::Buffer;
use pt_kernels::elem::{narrow, widen};
use pt_kernels::gemm::Values;
use pt_kernels::quant::int8::Int8Matrix;
use pt_kernels::quant::nf4::Nf4Matrix;

use super::DeviceRef;

/// How the elements of an array are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// Bytes: codes of some format.
    U8,
    /// 4-bit NF4 with its scales; frozen.
    Nf4,
    /// 8-bit with one scale per row; frozen.
    Int8,
}

impl Storage {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::Bf16 => "bf16",
            Storage::U8 => "u8",
            Storage::Nf4 => "nf4",
            Storage::Int8 => "int8",
        }
    }

    /// Whether the values are compressed, and never change.
    pub fn is_quantised(self) -> bool {
        matches!(self, Storage::Nf4 | Storage::Int8)
    }
}

/// Values in host memory.
#[derive(Clone, Debug)]
pub enum Host {
    /// 32-bit floats.
    F32(Buffer<f32>),
    /// 16-bit brain floats.
    Bf16(Buffer<bf16>),
    /// Bytes.
    U8(Buffer<u8>),
    /// 4-bit NF4.
    Nf4(Nf4Matrix),
    /// 8-bit with one scale per row.
    Int8(Int8Matrix),
}

impl Host {
    /// Numbers of unspecified content, to be written whole.
    ///
    /// # Panics
    /// If the storage is quantised: such values are made whole.
    pub fn dirty(storage: Storage, len: usize) -> Host {
        match storage {
            Storage::F32 => Host::F32(Buffer::dirty(len)),
            Storage::Bf16 => Host::Bf16(Buffer::dirty(len)),
            Storage::U8 => Host::U8(Buffer::dirty(len)),
            Storage::Nf4 | Storage::Int8 => {
                panic!("{} values are made whole, never in place", storage.name())
            }
        }
    }

    /// How the values are stored.
    pub fn storage(&self) -> Storage {
        match self {
            Host::F32(_) => Storage::F32,
            Host::Bf16(_) => Storage::Bf16,
            Host::U8(_) => Storage::U8,
            Host::Nf4(_) => Storage::Nf4,
            Host::Int8(_) => Storage::Int8,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Host::F32(values) => values.len(),
            Host::Bf16(values) => values.len(),
            Host::U8(values) => values.len(),
            Host::Nf4(matrix) => matrix.rows() * matrix.cols(),
            Host::Int8(matrix) => matrix.rows() * matrix.cols(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Host::F32(values) => values.len() * 4,
            Host::Bf16(values) => values.len() * 2,
            Host::U8(values) => values.len(),
            Host::Nf4(matrix) => matrix.bytes(),
            Host::Int8(matrix) => matrix.bytes(),
        }
    }

    /// The values in `f32`, dequantised where needed.
    ///
    /// # Panics
    /// For bytes, which mean nothing by themselves.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Host::F32(values) => values.to_vec(),
            Host::Bf16(values) => {
                let mut out = vec![0.0; values.len()];
                widen(values, &mut out);
                out
            }
            Host::Nf4(matrix) => matrix.dequantise(),
            Host::Int8(matrix) => matrix.dequantise(),
            Host::U8(_) => panic!("bytes have no value by themselves"),
        }
    }

    /// A copy of some of the numbers.
    ///
    /// # Panics
    /// If the storage is quantised or the range is not within.
    pub fn part(&self, range: Range<usize>) -> Host {
        match self {
            Host::F32(values) => Host::F32(Buffer::copy_of(&values[range])),
            Host::Bf16(values) => Host::Bf16(Buffer::copy_of(&values[range])),
            Host::U8(values) => Host::U8(Buffer::copy_of(&values[range])),
            Host::Nf4(_) | Host::Int8(_) => panic!("{} values have no parts", self.storage().name()),
        }
    }

    /// Some of the numbers in `f32`.
    fn part_to_f32(&self, range: Range<usize>) -> Vec<f32> {
        match self {
            Host::F32(values) => values[range].to_vec(),
            Host::Bf16(values) => {
                let mut out = vec![0.0; range.len()];
                widen(&values[range], &mut out);
                out
            }
            other => panic!("{} values have no parts", other.storage().name()),
        }
    }

    /// The elements of an `f32` array.
    ///
    /// # Panics
    /// If the array is of another type.
    pub fn f32s(&self) -> &[f32] {
        match self {
            Host::F32(values) => values,
            other => panic!("f32 values are stored as {}", other.storage().name()),
        }
    }

    /// The same, to change.
    ///
    /// # Panics
    /// If the array is of another type.
    pub fn f32s_mut(&mut self) -> &mut [f32] {
        match self {
            Host::F32(values) => values,
            other => panic!("f32 values are stored as {}", other.storage().name()),
        }
    }

    /// The right operand of a matrix product.
    pub(crate) fn values(&self) -> Values<'_> {
        match self {
            Host::F32(values) => Values::F32(values),
            Host::Bf16(values) => Values::Bf16(values),
            Host::Nf4(matrix) => Values::Nf4(matrix),
            Host::Int8(matrix) => Values::Int8(matrix),
            Host::U8(_) => unreachable!("bytes are no matrix"),
        }
    }
}

/// The elements of an array that a device keeps itself.
pub trait Memory: std::fmt::Debug + Send + Sync {
    /// Whose memory it is.
    fn device(&self) -> DeviceRef;

    /// A host copy.
    fn to_host(&self) -> Host;

    /// A host copy of some of the numbers.
    fn part_to_host(&self, range: Range<usize>) -> Host;

    /// Overwrites all elements with values of the same storage type and number.
    fn write(&mut self, values: &Host);

    /// A copy on the device.
    fn duplicate(&self) -> Box<dyn Memory>;

    /// The elements in place, where the CPU's kernels run on this memory, and only while one does.
    fn open(&self) -> Option<&Host> {
        None
    }

    /// The same, to change.
    fn open_mut(&mut self) -> Option<&mut Host> {
        None
    }
}

/// Elements of one storage type on one device.
#[derive(Debug)]
pub struct Array {
    storage: Storage,
    len: usize,
    bytes: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Cpu(Host),
    Device(Box<dyn Memory>),
}

impl From<Host> for Array {
    /// On the CPU; nothing is copied.
    fn from(values: Host) -> Array {
        let (storage, len, bytes) = (values.storage(), values.len(), values.bytes());
        Array { storage, len, bytes, place: Place::Cpu(values) }
    }
}

impl Clone for Array {
    fn clone(&self) -> Array {
        let place = match &self.place {
            Place::Cpu(values) => Place::Cpu(values.clone()),
            Place::Device(memory) => Place::Device(memory.duplicate()),
        };
        Array { place, ..*self }
    }
}

impl Array {
    /// An array on the CPU, in `f32`.
    pub fn from_f32(values: &[f32]) -> Array {
        Host::F32(Buffer::copy_of(values)).into()
    }

    /// An array on the CPU, in `bf16`, rounded from `f32`.
    pub fn bf16_from_f32(values: &[f32]) -> Array {
        let mut out = Buffer::<bf16>::dirty(values.len());
        narrow(values, &mut out);
        Host::Bf16(out).into()
    }

    /// An array of `len` elements that a device keeps in `bytes` of its own memory. For devices.
    pub fn of_memory(storage: Storage, len: usize, bytes: usize, memory: Box<dyn Memory>) -> Array {
        Array { storage, len, bytes, place: Place::Device(memory) }
    }

    /// How its elements are stored.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// The storage type's name.
    pub fn dtype_name(&self) -> &'static str {
        self.storage.name()
    }

    /// Whether the values are compressed, and never change.
    pub fn is_quantised(&self) -> bool {
        self.storage.is_quantised()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it lies.
    pub fn device(&self) -> DeviceRef {
        match &self.place {
            Place::Cpu(_) => DeviceRef::cpu(),
            Place::Device(memory) => memory.device(),
        }
    }

    /// The same values on `device`; nothing is copied if they are there.
    #[must_use]
    pub fn to_device(self, device: DeviceRef) -> Array {
        match self.place {
            Place::Cpu(values) => device.place(values),
            Place::Device(memory) if memory.device() == device => {
                Array { place: Place::Device(memory), ..self }
            }
            Place::Device(memory) => device.place(memory.to_host()),
        }
    }

    /// A copy in `f32`, on the same device.
    #[must_use]
    pub fn widened(&self) -> Array {
        super::widen(self)
    }

    /// The values in host memory: a copy, or where they are if they are there.
    pub fn to_host(&self) -> Cow<'_, Host> {
        match &self.place {
            Place::Cpu(values) => Cow::Borrowed(values),
            Place::Device(memory) => Cow::Owned(memory.to_host()),
        }
    }

    /// A host copy of all values, dequantised where needed.
    pub fn to_f32(&self) -> Vec<f32> {
        self.to_host().to_f32()
    }

    /// A host copy of some of the numbers in `f32`.
    ///
    /// # Panics
    /// If the storage is quantised or the range is not within.
    pub fn part_to_f32(&self, range: Range<usize>) -> Vec<f32> {
        match &self.place {
            Place::Cpu(values) => values.part_to_f32(range),
            Place::Device(memory) => memory.part_to_host(range).to_f32(),
        }
    }

    /// Overwrites all elements with host values.
    ///
    /// # Panics
    /// If they are of another storage type or number.
    pub fn write(&mut self, values: Host) {
        let found = (values.storage(), values.len());
        assert_eq!(found, (self.storage, self.len), "values for an array of another kind");
        match &mut self.place {
            Place::Cpu(own) => *own = values,
            Place::Device(memory) => memory.write(&values),
        }
    }

    /// The elements in host memory, for [`super::Kernel::cpu`] and nothing else.
    ///
    /// # Panics
    /// If they lie elsewhere: the caller is no kernel, or was given an array of another device.
    pub fn open(&self) -> &Host {
        match &self.place {
            Place::Cpu(values) => values,
            Place::Device(memory) => memory.open().unwrap_or_else(|| not_open(&**memory)),
        }
    }

    /// The same, to change.
    ///
    /// # Panics
    /// As [`Array::open`].
    pub fn open_mut(&mut self) -> &mut Host {
        match &mut self.place {
            Place::Cpu(values) => values,
            Place::Device(memory) => {
                let device = memory.device();
                memory.open_mut().unwrap_or_else(|| refuse(device))
            }
        }
    }
}

fn not_open<T>(memory: &dyn Memory) -> T {
    refuse(memory.device())
}

fn refuse<T>(device: DeviceRef) -> T {
    panic!("memory of `{}` is touched as host memory outside of a kernel", device.name())
}
