/* The one object: every hook's program over one set of maps. No code of its own. */
#include "end_sockets.bpf.c"
#include "from_net.bpf.c"
#include "from_pod.bpf.c"
#include "sockets.bpf.c"
#include "to_net.bpf.c"
#include "to_pod.bpf.c"
#include "to_tunnel.bpf.c"

/* Some helpers ask for a licence compatible with the GPL; these programs may be used under Apache-2.0 or it. */
char weft_license[] SEC("license") = "Dual MIT/GPL";
