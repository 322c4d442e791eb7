#include "adder/bench/train_gpu/kernel_times.h"

#include "adder/core/device.h"
#include "adder/core/error.h"

#ifdef ADDER_WITH_CUPTI
#include <cupti.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <utility>
#endif

namespace adder {

#ifdef ADDER_WITH_CUPTI
namespace {

constexpr size_t buffer_bytes = size_t{8} << 20;
constexpr CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                        CUPTI_ACTIVITY_KIND_MEMSET};

// CUPTI hands over its records in functions that it gives nothing of ours, in a thread of its own.
struct Collected {
  std::mutex mutex;
  std::vector<Activity> activities;
  size_t dropped = 0;
  std::string error;
};
Collected& collected() {
  static Collected& all = *new Collected;  // never destroyed: that thread may outlive main
  return all;
}

std::string message(CUptiResult result) {
  const char* text = nullptr;
  cuptiGetResultString(result, &text);
  return text == nullptr ? std::to_string(result) : text;
}
void check_cupti(CUptiResult result, const char* what) {
  check(result == CUPTI_SUCCESS, "CUPTI: {}: {}", what, message(result));
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* most_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, buffer_bytes));
  *size = *buffer == nullptr ? 0 : buffer_bytes;
  *most_records = 0;  // as many as fit
}

template <class Record>
void add(std::vector<Activity>& to, const CUpti_Activity* record, const char* kernel) {
  const auto* const r = reinterpret_cast<const Record*>(record);
  to.push_back({kernel, static_cast<int64_t>(r->start), static_cast<int64_t>(r->end)});
}

// Records grow at their end from one version of CUPTI to the next: what is read here lies where it lay in the first.
void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t* buffer, size_t, size_t valid) {
  Collected& to = collected();
  const std::lock_guard lock(to.mutex);
  CUpti_Activity* record = nullptr;
  CUptiResult result = CUPTI_ERROR_MAX_LIMIT_REACHED;  // as after the last record
  while (valid > 0 && (result = cuptiActivityGetNextRecord(buffer, valid, &record)) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL || record->kind == CUPTI_ACTIVITY_KIND_KERNEL)
      add<CUpti_ActivityKernel4>(to.activities, record, reinterpret_cast<CUpti_ActivityKernel4*>(record)->name);
    if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) add<CUpti_ActivityMemcpy>(to.activities, record, "");
    if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) add<CUpti_ActivityMemset>(to.activities, record, "");
  }
  if (result != CUPTI_ERROR_MAX_LIMIT_REACHED) to.error = message(result);
  size_t dropped = 0;
  cuptiActivityGetNumDroppedRecords(context, stream, &dropped);
  to.dropped += dropped;
  std::free(buffer);
}

}  // namespace

bool sees_activities() { return true; }

std::vector<Activity> activities(const std::function<void()>& f) {
  Collected& all = collected();
  synchronize();
  check_cupti(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "the place of its records");
  for (const CUpti_ActivityKind kind : kinds) check_cupti(cuptiActivityEnable(kind), "the start of its records");
  f();
  synchronize();
  check_cupti(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "the end of its records");
  for (const CUpti_ActivityKind kind : kinds) check_cupti(cuptiActivityDisable(kind), "the end of its records");
  const std::lock_guard lock(all.mutex);
  check(all.error.empty(), "CUPTI: a record: {}", all.error);
  check(all.dropped == 0, "CUPTI: {} of {} records were lost", all.dropped, all.dropped + all.activities.size());
  std::vector<Activity> result = std::exchange(all.activities, {});
  check(std::ranges::all_of(result, [](const Activity& a) { return a.begin > 0 && a.end >= a.begin; }),
        "CUPTI: some records lack times");
  std::ranges::stable_sort(result, {}, &Activity::begin);
  return result;
}

#else

bool sees_activities() { return false; }

std::vector<Activity> activities(const std::function<void()>&) {
  fail("activities: this build has found no CUPTI, a part of the CUDA toolkit");
}

#endif

}  // namespace adder
