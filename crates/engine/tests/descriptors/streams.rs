//! Standard streams, terminals and FIFOs.
