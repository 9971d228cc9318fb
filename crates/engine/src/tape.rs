//! The tape: records operations forward, consumes them backward.

use std::rc::Rc;
use std::time::Instant;

use crate::batch::Batch;
use crate::params::{Grads, Params};
use crate::profile::Profile;
use crate::tensor::{Dtype, Tensor};

/// Index of a recorded operation.
pub(crate) type NodeId = usize;

/// A value on the tape: shared, and linked to the operation that made it if a gradient flows there.
#[derive(Clone, Debug)]
pub struct Var {
    pub(crate) value: Rc<Tensor>,
    pub(crate) node: Option<NodeId>,
    /// How to make the value again, where that is cheap.
    pub(crate) recipe: Option<Recipe>,
}

/// Makes a value again, bit for bit, from what is kept anyway: an operation that would keep the value for its backward
/// pass keeps this instead.
#[derive(Clone)]
pub(crate) struct Recipe(Rc<dyn Fn(&Params) -> Tensor>);

impl Recipe {
    pub(crate) fn new(make: impl Fn(&Params) -> Tensor + 'static) -> Recipe {
        Recipe(Rc::new(make))
    }

    pub(crate) fn make(&self, params: &Params) -> Tensor {
        (self.0)(params)
    }
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recipe")
    }
}

impl Var {
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Whether a gradient would flow back from here.
    pub fn needs_grad(&self) -> bool {
        self.node.is_some()
    }

    /// The tensor, without a copy if nobody else holds it.
    pub(crate) fn into_owned(self) -> Tensor {
        Rc::try_unwrap(self.value).unwrap_or_else(|shared| (*shared).clone())
    }
}

/// What an operation keeps for its backward pass.
pub(crate) trait Op<'m> {
    /// For profiles.
    fn name(&self) -> &'static str;
    /// Gradients of the inputs, in their order, from the gradient of the output; parameter gradients go to `ctx`.
    ///
    /// Consumes the operation: what it saved is freed when it returns.
    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>>;
}

/// What backward passes may use.
pub(crate) struct Backward<'g, 'm> {
    pub(crate) params: &'m Params,
    pub(crate) batch: &'m Batch,
    pub(crate) grads: &'g mut Grads,
    pub(crate) mode: Mode,
    pub(crate) profile: &'g mut Profile,
}

struct Node<'m> {
    op: Option<Box<dyn Op<'m> + 'm>>,
    inputs: Vec<Option<NodeId>>,
}

/// What a tape is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mode {
    pub(crate) dtype: Dtype,
    pub(crate) recording: bool,
    /// Seed of this step's dropout; `None` switches dropout off.
    pub(crate) dropout_seed: Option<u64>,
    /// Whether adapters take part.
    pub(crate) adapters: bool,
}

/// The gradient a backward pass starts from.
pub struct Seed {
    /// Whose gradient it is.
    pub var: Var,
    /// The gradient, of the value's shape.
    pub grad: Tensor,
}

/// Records one forward pass over a batch.
pub struct Tape<'m> {
    pub(crate) params: &'m Params,
    pub(crate) batch: &'m Batch,
    pub(crate) mode: Mode,
    nodes: Vec<Node<'m>>,
    pub(crate) profile: Profile,
}

impl<'m> Tape<'m> {
    /// A tape that records for a backward pass. `dropout_seed` must differ from step to step.
    pub fn training(
        params: &'m Params,
        batch: &'m Batch,
        dtype: Dtype,
        dropout_seed: Option<u64>,
    ) -> Tape<'m> {
        Tape::with_mode(params, batch, Mode { dtype, recording: true, dropout_seed, adapters: true })
    }

    /// A tape that only computes.
    pub fn inference(params: &'m Params, batch: &'m Batch, dtype: Dtype) -> Tape<'m> {
        Tape::with_mode(params, batch, Mode { dtype, recording: false, dropout_seed: None, adapters: true })
    }

    /// The same with adapters left out: the base model, as a reference policy.
    #[must_use]
    pub fn without_adapters(mut self) -> Tape<'m> {
        self.mode.adapters = false;
        self
    }

    fn with_mode(params: &'m Params, batch: &'m Batch, mode: Mode) -> Tape<'m> {
        Tape { params, batch, mode, nodes: Vec::new(), profile: Profile::default() }
    }

    /// The batch this tape runs over.
    pub fn batch(&self) -> &'m Batch {
        self.batch
    }

    /// The storage type of activations.
    pub fn dtype(&self) -> Dtype {
        self.mode.dtype
    }

    /// Time per operation so far.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Whether an operation on these inputs, with or without parameters that train, must be recorded.
    pub(crate) fn records(&self, inputs: &[&Var], trains: bool) -> bool {
        self.mode.recording && (trains || inputs.iter().any(|var| var.node.is_some()))
    }

    /// A value no gradient flows through.
    pub(crate) fn constant(&self, value: Tensor) -> Var {
        Var { value: Rc::new(value), node: None, recipe: None }
    }

    /// A value whose gradient is wanted, made by no operation.
    pub(crate) fn leaf(&mut self, value: Rc<Tensor>) -> Var {
        self.nodes.push(Node { op: None, inputs: Vec::new() });
        Var { value, node: Some(self.nodes.len() - 1), recipe: None }
    }

    /// Records `op`, which made `value` from `inputs`.
    pub(crate) fn push(&mut self, op: impl Op<'m> + 'm, inputs: &[&Var], value: Rc<Tensor>) -> Var {
        let inputs = inputs.iter().map(|var| var.node).collect();
        self.nodes.push(Node { op: Some(Box::new(op)), inputs });
        Var { value, node: Some(self.nodes.len() - 1), recipe: None }
    }

    /// Runs `block`, keeping only its input; backward runs it again.
    ///
    /// `block` must be a pure function of the parameters, the batch and its input.
    pub fn recompute(&mut self, input: &Var, block: impl Fn(&mut Tape<'m>, &Var) -> Var + 'm) -> Var {
        let mut quiet = Tape::with_mode(self.params, self.batch, Mode { recording: false, ..self.mode });
        let output = block(&mut quiet, input);
        self.profile.merge(&quiet.profile);
        // The block is recorded even when its input needs no gradient: its parameters may train.
        if !self.mode.recording {
            return output;
        }
        let op = Recompute { input: input.value.clone(), block: Box::new(block) };
        self.push(op, &[input], output.value)
    }

    /// Accumulates parameter gradients into `grads`, consuming the tape.
    pub fn backward(mut self, seeds: Vec<Seed>, grads: &mut Grads) -> Profile {
        let seeds = seeds.into_iter().filter_map(|seed| Some((seed.var.node?, seed.grad))).collect();
        let mut profile = std::mem::take(&mut self.profile);
        self.run_backward(seeds, grads, &mut profile);
        profile
    }

    /// Consumes all nodes in reverse; returns the gradients of the leaves, last leaf first.
    pub(crate) fn run_backward(
        mut self,
        seeds: Vec<(NodeId, Tensor)>,
        grads: &mut Grads,
        profile: &mut Profile,
    ) -> Vec<Option<Tensor>> {
        let mut slots: Vec<Option<Tensor>> = Vec::new();
        slots.resize_with(self.nodes.len(), || None);
        for (node, grad) in seeds {
            add_to(&mut slots[node], grad);
        }
        let mut ctx = Backward { params: self.params, batch: self.batch, grads, mode: self.mode, profile };
        let mut leaves = Vec::new();
        while let Some(node) = self.nodes.pop() {
            let grad = slots.pop().flatten();
            let Some(op) = node.op else {
                leaves.push(grad);
                continue;
            };
            let Some(grad) = grad else { continue };
            let (name, start) = (op.name(), Instant::now());
            let input_grads = op.backward(grad, &mut ctx);
            ctx.profile.add(name, "backward", start);
            for (input, grad) in node.inputs.iter().zip(input_grads) {
                if let (Some(input), Some(grad)) = (input, grad) {
                    add_to(&mut slots[*input], grad);
                }
            }
        }
        leaves
    }
}

/// Sums in the order backward reaches the uses, which is fixed by the forward pass.
fn add_to(slot: &mut Option<Tensor>, grad: Tensor) {
    match slot {
        None => *slot = Some(grad),
        Some(sum) => sum.add_assign(&grad),
    }
}

/// A part of a forward pass that can be run again.
type Block<'m> = dyn Fn(&mut Tape<'m>, &Var) -> Var + 'm;

struct Recompute<'m> {
    input: Rc<Tensor>,
    block: Box<Block<'m>>,
}

impl<'m> Op<'m> for Recompute<'m> {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn backward(self: Box<Self>, d_out: Tensor, ctx: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        let mut tape = Tape::with_mode(ctx.params, ctx.batch, ctx.mode);
        let input = tape.leaf(self.input);
        let output = (self.block)(&mut tape, &input);
        ctx.profile.merge(&std::mem::take(&mut tape.profile));
        let seeds = output.node.map(|node| (node, d_out)).into_iter().collect();
        drop((input, output));
        tape.run_backward(seeds, ctx.grads, ctx.profile)
    }
}
