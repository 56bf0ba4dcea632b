//! Load BPF programs, speak netlink, apply a plan to the kernel and read it back.
