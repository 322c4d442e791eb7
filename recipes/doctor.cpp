// doctor: what each process has to work with, how fast they compute and talk, and what is wrong.
#include "adder/autograd/gradient_check.h"
#include "adder/data/tensor_file.h"
#include "adder/distributed/machine.h"
#include "adder/distributed/run.h"
#include "adder/kernels/matmul.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <sstream>

using namespace adder;

namespace {

/// What a rank says of itself; one line of text each.
struct Rank {
  std::string host, processor, affinity, build, mpi, gpus;
  int64_t cores = 1, host_cores = 1, threads = 1;
  double load = 0, memory = 0, flops = 0;  // processes running, GB/s, GFLOP/s

  std::string text() const {
    return fmt::format("{}\n{}\n{}\n{}\n{}\n{}\n{} {} {} {} {} {}", host, processor, affinity, build, mpi, gpus, cores,
                       host_cores, threads, load, memory, flops);
  }
  static Rank parse(const std::string& text) {
    Rank r;
    std::istringstream lines(text);
    for (std::string* line : {&r.host, &r.processor, &r.affinity, &r.build, &r.mpi, &r.gpus})
      std::getline(lines, *line);
    lines >> r.cores >> r.host_cores >> r.threads >> r.load >> r.memory >> r.flops;
    return r;
  }
};

/// Seconds that f takes, all ranks at once: the shortest of several times.
double seconds(const Communicator& world, const std::function<void()>& f) {
  double least = 1e9;
  f();
  for (int i = 0; i < 5; ++i) {
    world.barrier();
    const auto start = std::chrono::steady_clock::now();
    f();
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

/// GB/s of a = b + c, arrays far larger than any cache.
double memory_speed(const Communicator& world) {
  constexpr int64_t n = 1 << 24;
  const Tensor x({3, n}, DType::f32);
  float* const a = x.data<float>();
  const float *const b = a + n, *const c = b + n;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; ++i) a[i] = a[n + i] = a[2 * n + i] = 1;
  const double time = seconds(world, [&] {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) a[i] = b[i] + c[i];
  });
  return 12.0 * n / time / 1e9;
}

/// GFLOP/s of a product of matrices in f32.
double product_speed(const Communicator& world) {
  constexpr int64_t n = 1024;
  const Tensor a = random_normal({n, n}, 1, 1, 0, DType::f32), b = random_normal({n, n}, 2, 1, 0, DType::f32),
               c = zeros({n, n});
  return 2.0 * n * n * n / seconds(world, [&] { multiply({.a = a, .b = b, .c = c}); }) / 1e9;
}

/// "no GPU", "no GPU answers: unknown error" or "GPU 0: NVIDIA H200, 139.8 GiB, driver for CUDA 13.0, ...; GPU 1: ..."
std::string gpus() {
  if (!built_with_cuda) return "this adder was built without CUDA";
  if (gpu_count() == 0) return gpu_fault().empty() ? "no GPU" : "no GPU answers: " + gpu_fault();
  std::string text;
  for (int i = 0; i < gpu_count(); ++i) text += fmt::format("{}GPU {}: {}", i == 0 ? "" : "; ", i, describe_gpu(i));
  return text;
}

Rank examine(const Communicator& world) {
  Rank r{.host = host_name(), .processor = processor_name(), .affinity = affinity(),
         .build = fmt::format("{:.12} ({:08x})", source_commit(), file_crc("/proc/self/exe")), .mpi = library_version(),
         .gpus = gpus(),
         .cores = allowed_cores(), .host_cores = host_cores(), .threads = omp_get_max_threads()};
  r.mpi = r.mpi.substr(0, r.mpi.find_first_of(",\n"));
  r.load = host_load();
  r.memory = memory_speed(world);
  r.flops = product_speed(world);
  return r;
}

/// "2", "0-3", "0, 2, 5-7"
std::string list(const std::vector<int64_t>& ranks) {
  std::string text;
  for (size_t i = 0, j; i < ranks.size(); i = j) {
    for (j = i + 1; j < ranks.size() && ranks[j] == ranks[j - 1] + 1;) ++j;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", ranks[i]);
    if (j > i + 1) text += fmt::format("-{}", ranks[j - 1]);
  }
  return (ranks.size() > 1 ? "ranks " : "rank ") + text;
}

std::vector<std::string> faults(const std::vector<Rank>& ranks) {
  std::vector<std::string> found;
  std::map<std::string, std::vector<int64_t>> hosts, places, builds, mpis;
  std::vector<double> flops, memory;
  for (size_t r = 0; r < ranks.size(); ++r) {
    const auto number = static_cast<int64_t>(r);
    hosts[ranks[r].host].push_back(number);
    places[ranks[r].host + " cores " + ranks[r].affinity].push_back(number);
    builds[ranks[r].build].push_back(number);
    mpis[ranks[r].mpi].push_back(number);
    flops.push_back(ranks[r].flops);
    memory.push_back(ranks[r].memory);
  }
  const auto differ = [&](const char* what, const std::map<std::string, std::vector<int64_t>>& groups) {
    std::string text;
    for (const auto& [name, members] : groups)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", list(members), name);
    if (groups.size() > 1)
      found.push_back(fmt::format("the ranks run different {}: {}; install the same everywhere", what, text));
  };
  differ("builds of adder", builds);
  differ("versions of MPI", mpis);
  for (const auto& [place, members] : places) {
    const Rank& first = ranks[static_cast<size_t>(members[0])];
    int64_t threads = 0;
    for (const int64_t r : members) threads += ranks[static_cast<size_t>(r)].threads;
    if (threads > first.cores)
      found.push_back(fmt::format(
          "{} run{} {} threads on {} core{} ({}): they wait for each other; use fewer ranks or --threads {}",
          list(members), members.size() > 1 ? "" : "s", threads, first.cores, first.cores == 1 ? "" : "s", place,
          std::max<int64_t>(1, first.cores / static_cast<int64_t>(members.size()))));
  }
  for (const auto& [host, members] : hosts) {
    const Rank& first = ranks[static_cast<size_t>(members[0])];
    if (first.gpus.starts_with("no GPU answers")) found.push_back(fmt::format("{}: {}", host, first.gpus));
    const auto bound = [&](int64_t r) { return ranks[static_cast<size_t>(r)].cores == 1; };
    if (first.host_cores > static_cast<int64_t>(members.size()) && std::all_of(members.begin(), members.end(), bound))
      found.push_back(fmt::format(
          "{} of {} may use one core each, though it has {}: mpirun binds them unless it is given --bind-to none",
          list(members), host, first.host_cores));
    if (overloaded(first.load, first.host_cores))
      found.push_back(fmt::format("{} is busy: {:.1f} processes want its {} cores, so the figures here are too low",
                                  host, first.load, first.host_cores));
  }
  const auto slow = [&](const char* what, const char* unit, const std::vector<double>& speeds) {
    std::vector<double> sorted = speeds;
    std::sort(sorted.begin(), sorted.end());
    const double median = sorted[sorted.size() / 2];
    std::vector<int64_t> members;
    for (size_t r = 0; r < speeds.size(); ++r)
      if (speeds[r] < 0.5 * median) members.push_back(static_cast<int64_t>(r));
    if (!members.empty())
      found.push_back(fmt::format("{}: {} at less than half of the median, {:.1f} {}; every step waits for the slowest",
                                  list(members), what, median, unit));
  };
  slow("products run", "GFLOP/s", flops);
  slow("memory is read", "GB/s", memory);
  return found;
}

/// One line for each collective: microseconds and GB of tensor a second, by size. Between GPUs the bus bandwidth, as
/// NCCL's own tests count it: bytes that each GPU must send, or receive, a second. So figures of any number of GPUs
/// stand beside the speed of their links.
void show_collectives(Run& run, Device device) {
  const Communicator& world = run.mesh().world;
  const bool gpus = device == Device::cuda;
  const std::vector<int64_t> sizes{1 << 12, gpus ? 1 << 22 : 1 << 18, gpus ? 1 << 28 : 1 << 24};  // bytes
  std::string title = fmt::format("{:<16}", gpus ? "GPU to GPU (bus)" : "collective");
  for (const int64_t bytes : sizes)
    title += fmt::format("{:>25}",
                         bytes < 1 << 20 ? fmt::format("{} KiB", bytes >> 10) : fmt::format("{} MiB", bytes >> 20));
  run.say(title);
  using Call = std::function<void(const Tensor& whole, const Tensor& part, const Tensor& other)>;
  struct Collective {
    std::string name;
    double sent;  // by each rank, in sizes of the whole tensor
    Call call;
  };
  const double others = static_cast<double>(world.size() - 1) / static_cast<double>(world.size());
  const std::vector<Collective> all{
      {"all_reduce", 2 * others, [&](const Tensor& x, const Tensor&, const Tensor&) { world.all_reduce(x); }},
      {"all_gather", others, [&](const Tensor& x, const Tensor& part, const Tensor&) { world.all_gather(part, x); }},
      {"reduce_scatter", others,
       [&](const Tensor& x, const Tensor& part, const Tensor&) { world.reduce_scatter(x, part); }},
      {"broadcast", 1, [&](const Tensor& x, const Tensor&, const Tensor&) { world.broadcast(x); }},
      {"shift", 1, [&](const Tensor& x, const Tensor&, const Tensor& other) { world.shift(x, other, 1, Ends::ring); }}};
  const int calls = gpus ? 10 : 1;  // as in a training, where the host does not wait for each
  for (const auto& [name, sent, call] : all) {
    std::string line = fmt::format("{:<16}", name);
    for (const int64_t bytes : sizes) {
      const int64_t n = std::max<int64_t>(64, bytes / 4 / world.size() / 64 * 64);  // parts are aligned
      const Tensor whole = zeros({n * world.size()}, DType::f32, device), part = zeros({n}, DType::f32, device),
                   other = empty_like(whole);
      const double time = seconds(world, [&] {
        for (int i = 0; i < calls; ++i) call(whole, part, other);
        if (gpus) synchronize();
      }) / calls;
      line += fmt::format("{:>11.0f} us {:>6.2f} GB/s", time * 1e6,
                          (gpus ? sent : 1) * static_cast<double>(4 * whole.count()) / time / 1e9);
    }
    run.say(line);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  Run run(argc, argv,
          Flags("Looks at the processes of a run: hosts, cores, threads, GPUs, speed of memory, products on processors "
                "and collectives, and what is wrong.",
                "./adder -n 4 doctor"));
  const Communicator& world = run.mesh().world;
  std::vector<Rank> ranks;
  for (const std::string& text : world.exchange(examine(world).text())) ranks.push_back(Rank::parse(text));
  run.say(fmt::format("adder {}, {}; {} rank{}", ranks[0].build, ranks[0].mpi, world.size(),
                      world.size() > 1 ? "s" : ""));
  std::map<std::string, std::string> hosts;
  for (const Rank& r : ranks) hosts.emplace(r.host, r.gpus);
  for (const auto& [host, its_gpus] : hosts) run.say(fmt::format("{}: {}", host, its_gpus));
  run.say(fmt::format("\n{:>5}  {:<20}  {:<14}  {:>7}  {:>11}  {:>13}  {}", "rank", "host", "cores", "threads",
                      "memory GB/s", "SGEMM GFLOP/s", "processor"));
  for (size_t r = 0; r < ranks.size(); ++r)
    run.say(fmt::format("{:>5}  {:<20}  {:<14}  {:>7}  {:>11.1f}  {:>13.1f}  {}", r, ranks[r].host,
                        fmt::format("{} ({})", ranks[r].cores, ranks[r].affinity), ranks[r].threads, ranks[r].memory,
                        ranks[r].flops, ranks[r].processor));
  run.say("");
  if (world.size() > 1) show_collectives(run, Device::cpu);
  else run.say("one process: ./adder -n 4 doctor looks at four, and at how fast they talk");
  run.say("");
  if (world.size() > 1 && run.device() == Device::cuda) {
    show_collectives(run, Device::cuda);
    run.say("");
  }
  const auto found = faults(ranks);
  for (const std::string& fault : found) run.say("wrong: " + fault);
  if (found.empty()) run.say("nothing is wrong");
} catch (...) {
  return adder::exit_status();
}
