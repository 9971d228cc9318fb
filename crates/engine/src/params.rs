//! Parameters, their storage, and their gradients.

use std::collections::{BTreeMap, HashMap};

use pt_kernels::elem::Elem;

use crate::device::{Array, DeviceRef, Host, Kernel, Storage, copy_prefix, fill_zeros};

/// Index of a parameter in its [`Params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) u32);

impl ParamId {
    /// Position in declaration order.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A parameter's values: one array per parameter, in its storage type.
pub type Weight = Array;

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

    /// Replaces the values by others, perhaps of another storage type, placed where the old ones are.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn set_weight(&mut self, weight: Weight) {
        assert_eq!(weight.len(), self.len(), "values of {}", self.name);
        self.weight = weight.to_device(self.weight.device());
    }
}

/// All parameters of a model, in declaration order, on one device.
#[derive(Clone, Debug, Default)]
pub struct Params {
    device: DeviceRef,
    list: Vec<Param>,
    by_name: HashMap<String, ParamId>,
}

impl Params {
    /// None yet; those that are added are placed on `device`.
    pub fn on(device: DeviceRef) -> Params {
        Params { device, ..Params::default() }
    }

    /// Where they are.
    pub fn device(&self) -> DeviceRef {
        self.device
    }

    /// Moves all of them, one after the other.
    pub fn move_to(&mut self, device: DeviceRef) {
        self.device = device;
        for param in &mut self.list {
            param.weight = take(&mut param.weight).to_device(device);
        }
    }

    /// Adds a parameter, placing its values on the device.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn add(&mut self, mut param: Param) -> ParamId {
        param.weight = take(&mut param.weight).to_device(self.device);
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

    /// A parameter's values in `f32`, for kernels on the CPU.
    pub(crate) fn vector(&self, id: ParamId) -> Vec<f32> {
        self.get(id).weight.open().to_f32()
    }
}

/// The values, leaving none behind.
fn take(weight: &mut Weight) -> Weight {
    std::mem::replace(weight, Array::from_f32(&[]))
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
    values: Array,
    /// The values are of an earlier step and count as zeros.
    is_stale: bool,
}

/// Summed gradients of the rows of a matrix that were looked up.
#[derive(Debug)]
pub(crate) struct LookedUp {
    /// Place of each row's sum in `sums`.
    pub(crate) places: HashMap<u32, usize>,
    /// One row after the other, with room for more.
    pub(crate) sums: Array,
}

impl LookedUp {
    /// Makes room for the sums of all places, the new ones zero.
    pub(crate) fn grow(&mut self, cols: usize) {
        let needed = self.places.len() * cols;
        if needed <= self.sums.len() {
            return;
        }
        let mut larger = self.sums.device().zeros(Storage::F32, needed.max(2 * self.sums.len()));
        copy_prefix(&self.sums, &mut larger, self.sums.len());
        self.sums = larger;
    }
}

impl Grads {
    /// No gradients yet.
    pub fn new() -> Grads {
        Grads::default()
    }

    /// The accumulated gradient, if any backward pass reached the parameter.
    pub fn get(&self, id: ParamId) -> Option<&Array> {
        let slot = self.slots.get(id.index())?.as_ref()?;
        (!slot.is_stale).then_some(&slot.values)
    }

    /// The gradient to add to; zeros at first.
    pub(crate) fn slot(&mut self, params: &Params, id: ParamId) -> &mut Array {
        let (values, holds) = self.product_slot(params, id);
        if !holds {
            fill_zeros(values);
        }
        values
    }

    /// The gradient, and whether it holds anything to add to. If not, the caller writes **all** of it: a product that
    /// starts at zero need not read zeros.
    pub(crate) fn product_slot(&mut self, params: &Params, id: ParamId) -> (&mut Array, bool) {
        debug_assert!(params.trains(id), "{} does not train", params.get(id).name);
        if self.slots.len() < params.len() {
            self.slots.resize_with(params.len(), || None);
        }
        let len = params.get(id).len();
        let new = || Slot { values: params.device().alloc(Storage::F32, len), is_stale: true };
        let slot = self.slots[id.index()].get_or_insert_with(new);
        let holds = !std::mem::replace(&mut slot.is_stale, false);
        (&mut slot.values, holds)
    }

    /// The sums of looked-up rows to add to.
    pub(crate) fn looked_up(&mut self, params: &Params, id: ParamId) -> &mut LookedUp {
        let none = || LookedUp { places: HashMap::new(), sums: params.device().alloc(Storage::F32, 0) };
        self.looked_up.entry(id).or_insert_with(none)
    }

    /// Adds what was kept apart to the gradients. To be called once, after the last backward pass of a step.
    pub fn settle(&mut self, params: &Params) {
        for (id, rows) in std::mem::take(&mut self.looked_up) {
            let cols = params.get(id).shape[1];
            let slot = self.slot(params, id);
            params.device().run(&mut Settle { rows: &rows, cols, slot });
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

/// Adds the sums of looked-up rows to a matrix.
struct Settle<'a> {
    rows: &'a LookedUp,
    cols: usize,
    slot: &'a mut Array,
}

impl Kernel for Settle<'_> {
    fn name(&self) -> &'static str {
        "settle"
    }

    fn cpu(&mut self) {
        let (cols, sums, slot) = (self.cols, self.rows.sums.open().f32s(), self.slot.open_mut().f32s_mut());
        for (&row, &place) in &self.rows.places {
            let sum = &sums[place * cols..(place + 1) * cols];
            let target = &mut slot[row as usize * cols..(row as usize + 1) * cols];
            target.iter_mut().zip(sum).for_each(|(target, sum)| *target += sum);
        }
    }
}

/// Elements of `weight` converted to the activation type, for lookups.
pub(crate) fn copy_row<E: Elem>(weight: &Host, row: usize, cols: usize, scale: f32, out: &mut [E]) {
    match weight {
        Host::F32(values) => scaled_copy(&values[row * cols..(row + 1) * cols], scale, out),
        Host::Bf16(values) => scaled_copy(&values[row * cols..(row + 1) * cols], scale, out),
        Host::Nf4(_) | Host::Int8(_) | Host::U8(_) => {
            unreachable!("embeddings are never quantised: the loader keeps them in floating point")
        }
    }
}

fn scaled_copy<F: Elem, E: Elem>(from: &[F], scale: f32, out: &mut [E]) {
    for (out, from) in out.iter_mut().zip(from) {
        *out = E::put(from.get() * scale);
    }
}
