"""The HDF5 store: the only place that opens h5py."""
