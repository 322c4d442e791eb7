#include "adder/autograd/state.h"

namespace adder {

void check_piece(const Piece& p) {
  check(p.tensor.defined() && p.tensor.contiguous(), "state: {} is undefined or its rows lie apart", p.name);
  const bool fits = p.axis < 0 ? p.end() <= p.shape.count()
                               : p.axis < p.shape.rank() && p.tensor.rank() == p.shape.rank() &&
                                     p.end() <= p.shape[p.axis] &&
                                     p.tensor.shape() == p.shape.with(p.axis, p.tensor.size(p.axis));
  check(fits && p.begin >= 0, "state: {} from {} along axis {} is no piece of {} {}", to_string(p.tensor.shape()),
        p.begin, p.axis, p.name, to_string(p.shape));
}

Piece Piece::whole(const std::string& name, const Tensor& tensor) {
  return {.name = name, .shape = tensor.shape(), .tensor = tensor};
}

Piece Piece::like(const Param& param, const std::string& kind, const Tensor& tensor) {
  return {.name = kind.empty() ? param.name : kind + "/" + param.name,
          .shape = param.shape,
          .axis = param.options.shard_axis,
          .begin = param.offset,
          .tensor = tensor.reshape(param.value.shape())};
}

State state(const Params& params) {
  State result{.name = "parameters", .filled = [params] { params.round(); }};
  for (const Param& param : params.all()) result.tensors.push_back(Piece::like(param, "", param.value));
  return result;
}

}  // namespace adder
