//! CPU kernels: matrix products, attention, elementwise loops, quantised formats, buffers.
