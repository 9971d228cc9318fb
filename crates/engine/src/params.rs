//! Parameters, their storage, and their gradients.

use std::collections::{BTreeMap, HashMap};

use half::bf16;
use pt_kernels::buffer::Buffer;
use pt_kernels::elem::{Elem, narrow, widen};
use pt_kernels::gemm::Values;
use pt_kernels::quant::int8::Int8Matrix;
use pt_kernels::quant::nf4::Nf4Matrix;

/// Index of a parameter in its [`Params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) u32);

impl ParamId {
    /// Position in declaration order.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One buffer per parameter, in its storage type.
#[derive(Clone, Debug)]
pub enum Weight {
    /// 32-bit floats.
    F32(Buffer<f32>),
    /// 16-bit brain floats.
    Bf16(Buffer<bf16>),
    /// 4-bit NF4, frozen.
    Nf4(Nf4Matrix),
    /// 8-bit with one scale per row, frozen.
    Int8(Int8Matrix),
}

/// Elements of a floating-point weight.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit brain floats.
    Bf16(&'a [bf16]),
}

/// Elements of a floating-point weight, to change.
#[derive(Debug)]
pub enum ElementsMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// 16-bit brain floats.
    Bf16(&'a mut [bf16]),
}

impl Weight {
    /// An `f32` weight.
    pub fn from_f32(values: &[f32]) -> Weight {
        Weight::F32(Buffer::copy_of(values))
    }

    /// A `bf16` weight, rounded from `f32`.
    pub fn bf16_from_f32(values: &[f32]) -> Weight {
        let mut out = Buffer::<bf16>::dirty(values.len());
        narrow(values, &mut out);
        Weight::Bf16(out)
    }

    /// A host copy of all values, dequantised where needed.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Weight::F32(values) => values.to_vec(),
            Weight::Bf16(values) => {
                let mut out = vec![0.0; values.len()];
                widen(values, &mut out);
                out
            }
            Weight::Nf4(matrix) => matrix.dequantise(),
            Weight::Int8(matrix) => matrix.dequantise(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::F32(values) => values.len() * 4,
            Weight::Bf16(values) => values.len() * 2,
            Weight::Nf4(matrix) => matrix.bytes(),
            Weight::Int8(matrix) => matrix.bytes(),
        }
    }

    /// The storage type's name.
    pub fn dtype_name(&self) -> &'static str {
        match self {
            Weight::F32(_) => "f32",
            Weight::Bf16(_) => "bf16",
            Weight::Nf4(_) => "nf4",
            Weight::Int8(_) => "int8",
        }
    }

    /// Whether an optimiser may change it.
    pub fn is_quantised(&self) -> bool {
        matches!(self, Weight::Nf4(_) | Weight::Int8(_))
    }

    /// The elements where they are, for optimisers and checkpoints; `None` for quantised weights, which never change.
    pub fn elements(&self) -> Option<Elements<'_>> {
        match self {
            Weight::F32(values) => Some(Elements::F32(values)),
            Weight::Bf16(values) => Some(Elements::Bf16(values)),
            Weight::Nf4(_) | Weight::Int8(_) => None,
        }
    }

    /// The same, to update in place.
    pub fn elements_mut(&mut self) -> Option<ElementsMut<'_>> {
        match self {
            Weight::F32(values) => Some(ElementsMut::F32(values)),
            Weight::Bf16(values) => Some(ElementsMut::Bf16(values)),
            Weight::Nf4(_) | Weight::Int8(_) => None,
        }
    }

    pub(crate) fn values(&self) -> Values<'_> {
        match self {
            Weight::F32(values) => Values::F32(values),
            Weight::Bf16(values) => Values::Bf16(values),
            Weight::Nf4(matrix) => Values::Nf4(matrix),
            Weight::Int8(matrix) => Values::Int8(matrix),
        }
    }
}

/// A named parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// The name in the checkpoint.
    pub name: String,
    /// `[out, in]` for matrices, `[n]` for vectors.
    pub shape: Vec<usize>,
    /// The values.
    pub weight: Weight,
    /// Whether gradients are computed and the optimiser updates it.
    pub trainable: bool,
}

impl Param {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All parameters of a model, in declaration order.
#[derive(Clone, Debug, Default)]
pub struct Params {
    list: Vec<Param>,
    by_name: HashMap<String, ParamId>,
}

impl Params {
    /// Adds a parameter.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn add(&mut self, param: Param) -> ParamId {
        let id = ParamId(u32::try_from(self.list.len()).expect("fewer than 2^32 parameters"));
        let previous = self.by_name.insert(param.name.clone(), id);
        assert!(previous.is_none(), "parameter {} declared twice", param.name);
        self.list.push(param);
        id
    }

    /// The parameter `id`.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.list[id.index()]
    }

    /// The parameter `id`, to change.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Param {
        &mut self.list[id.index()]
    }

    /// The parameter of that name.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// All parameters with their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(i, param)| (ParamId(i as u32), param))
    }

    /// All parameters with their ids, to change.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (ParamId, &mut Param)> {
        self.list.iter_mut().enumerate().map(|(i, param)| (ParamId(i as u32), param))
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn trains(&self, id: ParamId) -> bool {
        self.list[id.index()].trainable
    }

    /// A vector parameter's values in `f32`.
    pub(crate) fn vector(&self, id: ParamId) -> Vec<f32> {
        self.get(id).weight.to_f32()
    }
}

/// Gradients of trainable parameters, `f32`, accumulated over micro-batches.
#[derive(Debug, Default)]
pub struct Grads {
    slots: Vec<Option<Slot>>,
    /// Gradients of looked-up rows, kept apart from the slot until [`Grads::settle`]: a tied embedding's slot gathers the
    /// output layer's gradient, and each of the two must be one chain over the whole step.
    looked_up: BTreeMap<ParamId, LookedUp>,
}

/// One parameter's gradient.
#[derive(Debug)]
struct Slot {
    values: Buffer<f32>,
    /// The values are of an earlier step and count as zeros.
    is_stale: bool,
}

/// Summed gradients of the rows of a matrix that were looked up.
#[derive(Debug, Default)]
pub(crate) struct LookedUp {
    /// Place of each row's sum in `sums`.
    pub(crate) places: HashMap<u32, usize>,
    /// One row after the other.
    pub(crate) sums: Vec<f32>,
}

impl Grads {
    /// No gradients yet.
    pub fn new() -> Grads {
        Grads::default()
    }

    /// The accumulated gradient, if any backward pass reached the parameter.
    pub fn get(&self, id: ParamId) -> Option<&[f32]> {
        let slot = self.slots.get(id.index())?.as_ref()?;
        (!slot.is_stale).then_some(&*slot.values)
    }

    /// The gradient to add to; zeros at first.
    pub(crate) fn slot(&mut self, params: &Params, id: ParamId) -> &mut [f32] {
        let (values, holds) = self.product_slot(params, id);
        if !holds {
            values.fill(0.0);
        }
        values
    }

    /// The gradient, and whether it holds anything to add to. If not, the caller writes **all** of it: a product that
    /// starts at zero need not read zeros.
    pub(crate) fn product_slot(&mut self, params: &Params, id: ParamId) -> (&mut [f32], bool) {
        debug_assert!(params.trains(id), "{} does not train", params.get(id).name);
        if self.slots.len() < params.len() {
            self.slots.resize_with(params.len(), || None);
        }
        let new = || Slot { values: Buffer::dirty(params.get(id).len()), is_stale: true };
        let slot = self.slots[id.index()].get_or_insert_with(new);
        let holds = !std::mem::replace(&mut slot.is_stale, false);
        (&mut slot.values, holds)
    }

    /// The sums of looked-up rows to add to.
    pub(crate) fn looked_up(&mut self, id: ParamId) -> &mut LookedUp {
        self.looked_up.entry(id).or_default()
    }

    /// Adds what was kept apart to the gradients. To be called once, after the last backward pass of a step.
    pub fn settle(&mut self, params: &Params) {
        for (id, rows) in std::mem::take(&mut self.looked_up) {
            let cols = params.get(id).shape[1];
            let slot = self.slot(params, id);
            for (&row, &place) in &rows.places {
                let sum = &rows.sums[place * cols..(place + 1) * cols];
                let target = &mut slot[row as usize * cols..(row as usize + 1) * cols];
                target.iter_mut().zip(sum).for_each(|(target, sum)| *target += sum);
            }
        }
    }

    /// Sets all gradients to zero, keeping their memory.
    pub fn clear(&mut self) {
        self.looked_up.clear();
        for slot in self.slots.iter_mut().flatten() {
            slot.is_stale = true;
        }
    }
}

/// Elements of `weight` converted to the activation type, for lookups.
pub(crate) fn copy_row<E: Elem>(weight: &Weight, row: usize, cols: usize, scale: f32, out: &mut [E]) {
    match weight {
        Weight::F32(values) => scaled_copy(&values[row * cols..(row + 1) * cols], scale, out),
        Weight::Bf16(values) => scaled_copy(&values[row * cols..(row + 1) * cols], scale, out),
        Weight::Nf4(_) | Weight::Int8(_) => {
            unreachable!("embeddings are never quantised: the loader keeps them in floating point")
        }
    }
}

fn scaled_copy<F: Elem, E: Elem>(from: &[F], scale: f32, out: &mut [E]) {
    for (out, from) in out.iter_mut().zip(from) {
        *out = E::put(from.get() * scale);
    }
}
