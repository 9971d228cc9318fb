//! `y = a + b`.

use std::rc::Rc;

use crate::tape::{Backward, Op, Tape, Var};
use crate::tensor::Tensor;

struct Add;

impl<'m> Op<'m> for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn backward(self: Box<Self>, d_out: Tensor, _: &mut Backward<'_, 'm>) -> Vec<Option<Tensor>> {
        vec![Some(d_out.clone()), Some(d_out)]
    }
}

impl Tape<'_> {
    /// `a + b`, elementwise, of one shape. Shapes `[T, width]`.
    pub fn add(&mut self, a: &Var, b: &Var) -> Var {
        let mut sum = a.value().clone();
        sum.add_assign(b.value());
        if self.records(&[a, b], false) { self.push(Add, &[a, b], Rc::new(sum)) } else { self.constant(sum) }
    }
}
