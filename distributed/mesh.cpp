#include "adder/distributed/mesh.h"

#include "adder/core/error.h"

namespace adder {

Mesh::Mesh(const Communicator& all, const MeshSizes& sizes) : world(all) {
  const int64_t processes = all.size();
  check(sizes.data >= 0 && sizes.tensor >= 1 && sizes.sequence >= 1, "a mesh of {} x {} x {} processes", sizes.data,
        sizes.tensor, sizes.sequence);
  const int64_t rest = sizes.tensor * sizes.sequence, copies = sizes.data > 0 ? sizes.data : processes / rest;
  check(copies * rest == processes,
        "{} processes cannot be cut into data {} x tensor {} x sequence {}; start as many as these multiply to",
        processes, copies, sizes.tensor, sizes.sequence);
  const int64_t rank = all.rank(), t = rank % sizes.tensor, s = rank / sizes.tensor % sizes.sequence, d = rank / rest;
  data = world.split(rank % rest, d);
  tensor = world.split(rank / sizes.tensor, t);
  sequence = world.split(d * sizes.tensor + t, s);
}

}  // namespace adder
