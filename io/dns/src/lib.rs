//! Sockets around name answers; forwarding; cache.
