// Products of rows with a packed matrix, for the cores of a CPU: y = x W with x [rows, depth] and y [rows, columns],
// or y = x W + bias, or what of it is not below zero.
//
// Called by XLA through its foreign function interface. No input is gathered and no output is added up elsewhere: a
// tile of sums stays in registers while the kept weights go by once. Vectors are those of the compiler, so that one
// text does for all instruction sets; what is wider than a register it splits.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Numbers = ffi::Buffer<ffi::S32>;
using Codes = ffi::Buffer<ffi::S8>;

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__ARM_NEON) || defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

constexpr int kLine = 16;  // floats of a line of the cache: a vector that lies across two is read twice

template <int N>
struct Vector {
  typedef float type __attribute__((vector_size(4 * N)));
  typedef float loose __attribute__((vector_size(4 * N), aligned(4), may_alias));
  typedef int32_t places __attribute__((vector_size(4 * N)));
};

template <int N = kLanes>
inline typename Vector<N>::type load(const float* p) {
  return *reinterpret_cast<const typename Vector<N>::loose*>(p);
}

// Codes of one byte, widened. GCC does this a number at a time unless it is told which instruction there is.
inline Vector<kLanes>::type load(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  typedef int8_t bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const bytes*>(p), Vector<kLanes>::type);
#endif
}

// Numbers of both, by where they are in the one after the other.
template <typename V, typename I>
inline V shuffle(V a, V b, I places) {
#if defined(__clang__)
  V out;
  for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) {
    const size_t n = sizeof(V) / sizeof(float), at = places[i];
    out[i] = at < n ? a[at] : b[at - n];
  }
  return out;
#else
  return __builtin_shuffle(a, b, places);
#endif
}

template <int N = kLanes>
inline void store(float* p, typename Vector<N>::type v) {
  *reinterpret_cast<typename Vector<N>::loose*>(p) = v;
}

// What is done to sums before they are written: a bias of each column is added, if there are any, and what is then
// below zero becomes zero, if that is asked for. What is not a number stays so.
struct After {
  const float* bias;
  bool relu;

  After(Floats& bias, bool relu) : bias(bias.element_count() ? bias.typed_data() : nullptr), relu(relu) {}

  float added(int64_t column) const { return bias ? bias[column] : 0; }

  float rectified(float sum) const { return relu && sum < 0 ? 0 : sum; }

  template <int N>
  typename Vector<N>::type rectified(typename Vector<N>::type sums) const {
    using Bits = typename Vector<N>::places;
    return relu ? (typename Vector<N>::type)((Bits)sums & ~(sums < 0)) : sums;
  }
};

// Work in parts, each done once, by the threads of XLA and by the caller. Those of a pool may all be callers who
// wait: so a caller does every part that nobody has begun, and waits for those alone that others are busy with.
// The caller begins in front and all others at the back: the next call finds most of its part of the weights and of
// the outputs in the cache of the core that it is on.
template <typename F>
void in_parts(ffi::ThreadPool pool, int64_t parts, F&& part) {
  if (parts <= 1) {
    if (parts == 1) part(0);
    return;
  }
  struct Job {
    std::atomic<int64_t> begun{0}, back{0}, done{0};
  };
  auto job = std::make_shared<Job>();
  // What is begun late finds no part left, and touches nothing of the caller's, who may be gone.
  auto work = [job, parts, part = &part](auto next) {
    for (; job->begun.fetch_add(1) < parts; job->done.fetch_add(1, std::memory_order_release)) (*part)(next());
  };
  auto help = [job, parts, work] { work([&] { return parts - 1 - job->back.fetch_add(1); }); };
  const int64_t helpers = std::min<int64_t>(parts, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::decay_t<decltype(help)>(help));
  work([front = int64_t{0}]() mutable { return front++; });
  for (int spins = 0; job->done.load(std::memory_order_acquire) < parts; ++spins) {
    if (spins > 4096) std::this_thread::yield();
  }
}

// How many parts there are, small ones so that all threads end together, if it is worth waking any; and where the
// strips of a part begin, with as many weights in each.
constexpr int64_t kPart = 1 << 16, kWorth = 1 << 18;  // multiplications
int64_t parts_of(ffi::ThreadPool& pool, int64_t multiplications) {
  const int64_t threads = pool.num_threads();
  return threads < 2 || multiplications < kWorth ? 1 : std::min(multiplications / kPart, 16 * threads);
}

int64_t begin(const int32_t* starts, int64_t count, int64_t part, int64_t parts) {
  if (part == 0) return 0;
  if (part == parts) return count;
  const int64_t wanted = int64_t{starts[count]} * part / parts;
  return std::lower_bound(starts, starts + count, wanted) - starts;
}

// Strips: every `width` outputs share the inputs that they read.

constexpr int kWidest = 64;
constexpr int kRows = kRegisters / 4;  // with two vectors each their sums take half of the registers

template <int V, int R, typename T>
void tile(const float* x, int64_t stride, const int32_t* index, const T* values, int width, int count, float* sums) {
  typename Vector<kLanes>::type sum[R][V] = {};
  for (int k = 0; k < count; ++k) {
    typename Vector<kLanes>::type weight[V];
    for (int v = 0; v < V; ++v) weight[v] = load(values + int64_t{k} * width + v * kLanes);
    const float* input = x + index[k];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sum[r][v] += input[r * stride] * weight[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store(sums + r * width + v * kLanes, sum[r][v]);
  }
}

// One row: two weights of an output at a time, since a sum has to wait for the one before.
template <int V, typename T>
void line(const float* x, const int32_t* index, const T* values, int width, int count, float* sums) {
  typename Vector<kLanes>::type even[V] = {}, odd[V] = {};
  int k = 0;
  for (; k + 1 < count; k += 2, values += 2 * width) {
    for (int v = 0; v < V; ++v) {
      even[v] += x[index[k]] * load(values + v * kLanes);
      odd[v] += x[index[k + 1]] * load(values + width + v * kLanes);
    }
  }
  for (int v = 0; v < V; ++v) {
    if (k < count) even[v] += x[index[k]] * load(values + v * kLanes);
    store(sums + v * kLanes, even[v] + odd[v]);
  }
}

template <int V, int R, typename T>
void rows_of(int rows, const float* x, int64_t stride, const int32_t* index, const T* values, int width, int count,
             float* sums) {
  if constexpr (R == 1) {
    line<V>(x, index, values, width, count, sums);
  } else if (rows == R) {
    tile<V, R>(x, stride, index, values, width, count, sums);
  } else {
    rows_of<V, R - 1>(rows, x, stride, index, values, width, count, sums);
  }
}

template <int V, typename T>
void strip(const float* x, int64_t rows, int64_t depth, const int32_t* index, const T* values, int width, int count,
           const int32_t* order, const float* scale, After after, float* y, int64_t columns) {
  alignas(4 * kLine) float sums[kRows * kWidest], added[kWidest] = {};
  int held = 0;  // the last strip may be filled up: what is filled up has no place
  while (held < width && order[held] >= 0) ++held;
  const bool together = held == width && order[width - 1] - order[0] == width - 1;  // places ascend
  for (int i = 0; i < held; ++i) added[i] = after.added(order[i]);
  for (int64_t row = 0; row < rows; row += kRows) {
    const int here = static_cast<int>(std::min<int64_t>(kRows, rows - row));
    for (int v = 0; v < width; v += V * kLanes) {
      rows_of<V, kRows>(here, x + row * depth, depth, index, values + v, width, count, sums + v);
    }
    for (int r = 0; r < here; ++r) {
      float *from = sums + r * width, *to = y + (row + r) * columns;
      float* done = together ? to + order[0] : from;
      for (int v = 0; v < width; v += kLanes) {
        auto sum = load(from + v);
        if (scale) sum *= load(scale + v);
        store(done + v, after.rectified<kLanes>(sum + load(added + v)));
      }
      for (int i = 0; !together && i < held; ++i) to[order[i]] = from[i];
    }
  }
}

template <typename T>
ffi::Error strips(ffi::ThreadPool& pool, After after, Floats& x, const T* values, int64_t width, Numbers& index,
                  Numbers& starts, Numbers& order, const float* scale, ffi::ResultBuffer<ffi::F32>& y) {
  const int64_t rows = x.dimensions()[0], depth = x.dimensions()[1], columns = y->dimensions()[1];
  const int64_t count = starts.element_count() - 1;
  if (width % kLanes || width > kWidest || static_cast<int64_t>(order.element_count()) != count * width) {
    return ffi::Error::InvalidArgument("strips are of 16, 32, 48 or 64 outputs, and each output has a place");
  }
  const int32_t* from = starts.typed_data();
  const int64_t parts = parts_of(pool, rows * from[count] * width);
  in_parts(pool, parts, [&](int64_t part) {
    for (int64_t s = begin(from, count, part, parts); s < begin(from, count, part + 1, parts); ++s) {
      auto run = width % (2 * kLanes) ? strip<1, T> : strip<2, T>;
      run(x.typed_data(), rows, depth, index.typed_data() + from[s], values + int64_t{from[s]} * width,
          static_cast<int>(width), from[s + 1] - from[s], order.typed_data() + s * width,
          scale ? scale + s * width : nullptr, after, y->typed_data(), columns);
    }
  });
  return ffi::Error::Success();
}

ffi::Error Strips(ffi::ThreadPool pool, bool relu, Floats x, Floats bias, Floats values, Numbers index,
                  Numbers starts, Numbers order, ffi::ResultBuffer<ffi::F32> y) {
  return strips(pool, After(bias, relu), x, values.typed_data(), values.dimensions().back(), index, starts, order,
                nullptr, y);
}

ffi::Error CodedStrips(ffi::ThreadPool pool, bool relu, Floats x, Floats bias, Codes values, Floats scale,
                       Numbers index, Numbers starts, Numbers order, ffi::ResultBuffer<ffi::F32> y) {
  return strips(pool, After(bias, relu), x, values.typed_data(), values.dimensions().back(), index, starts, order,
                scale.typed_data(), y);
}

// Lists: every output has inputs of its own. Rows lie side by side in a vector, so rows are turned first.

constexpr int kOutputs = 16;  // that are put back in rows together
constexpr int kMost = std::min(4, 32 / kLanes);  // vectors of rows: with more the rows no longer stay in the cache

// A square of numbers, its rows to columns: rows are shuffled into one another until every number is in place.
template <int N>
void turn_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  typename Vector<N>::type square[N], shuffled[N];
  for (int i = 0; i < N; ++i) square[i] = load<N>(from + i * from_stride);
  typename Vector<N>::places low = {}, high = {};
  for (int i = 0; i < N; ++i) {
    low[i] = i / 2 + i % 2 * N;
    high[i] = low[i] + N / 2;
  }
  for (int stage = 1; stage < N; stage *= 2) {
    for (int i = 0; i < N / 2; ++i) {
      shuffled[2 * i] = shuffle(square[i], square[i + N / 2], low);
      shuffled[2 * i + 1] = shuffle(square[i], square[i + N / 2], high);
    }
    std::copy_n(shuffled, N, square);
  }
  for (int i = 0; i < N; ++i) store<N>(to + i * to_stride, square[i]);
}

// to[j, i] = from[i, j], in squares as far as they go.
void turn(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  constexpr int N = kLanes;
  for (int64_t i = 0; i < rows; i += N) {
    for (int64_t j = 0; j < columns; j += N) {
      if (i + N <= rows && j + N <= columns) {
        turn_square<N>(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
        continue;
      }
      for (int64_t a = i; a < std::min(i + N, rows); ++a) {
        for (int64_t b = j; b < std::min(j + N, columns); ++b) to[b * to_stride + a] = from[a * from_stride + b];
      }
    }
  }
}

template <int N, int V>
void list(const float* turned, const int32_t* index, const float* values, int count, float added, After after,
          float* sums) {
  typename Vector<N>::type even[V] = {}, odd[V] = {};
  int k = 0;
  for (; k + 1 < count; k += 2) {
    const float *one = turned + int64_t{index[k]} * N * V, *two = turned + int64_t{index[k + 1]} * N * V;
    for (int v = 0; v < V; ++v) {
      even[v] += values[k] * load<N>(one + v * N);
      odd[v] += values[k + 1] * load<N>(two + v * N);
    }
  }
  for (int v = 0; v < V; ++v) {
    if (k < count) even[v] += values[k] * load<N>(turned + int64_t{index[k]} * N * V + v * N);
    store<N>(sums + v * N, after.rectified<N>(even[v] + odd[v] + added));
  }
}

struct Lists {
  After after;
  const float *x, *values;
  const int32_t *index, *starts;
  float* y;
  int64_t rows, depth, columns;

  // So many rows at a time. What a vector has beyond the last of them is multiplied too, and dropped.
  template <int N, int V>
  void in_rows(ffi::ThreadPool pool, int64_t row, int64_t here) const {
    constexpr int R = N * V;
    static thread_local std::vector<float> kept;
    kept.resize(depth * R + kLine);  // what belongs to no row is never looked at
    float* turned = kept.data() + (kLine - reinterpret_cast<uintptr_t>(kept.data()) / sizeof(float) % kLine);
    turn(x + row * depth, depth, here, depth, turned, R);
    const int64_t parts = parts_of(pool, int64_t{starts[columns]} * R);
    in_parts(pool, parts, [&](int64_t part) {
      alignas(4 * kLine) float sums[kOutputs * R];
      const int64_t end = begin(starts, columns, part + 1, parts);
      for (int64_t o = begin(starts, columns, part, parts); o < end; o += kOutputs) {
        const int64_t held = std::min<int64_t>(kOutputs, end - o);
        for (int64_t i = 0; i < held; ++i) {
          const int32_t from = starts[o + i];
          list<N, V>(turned, index + from, values + from, starts[o + i + 1] - from, after.added(o + i), after,
                     sums + i * R);
        }
        turn(sums, R, held, here, y + row * columns + o, columns);
      }
    });
  }

  void one(ffi::ThreadPool pool) const {
    const int64_t parts = parts_of(pool, starts[columns]);
    in_parts(pool, parts, [&](int64_t part) {
      for (int64_t o = begin(starts, columns, part, parts); o < begin(starts, columns, part + 1, parts); ++o) {
        float a = 0, b = 0, c = 0, d = 0;
        int k = starts[o];
        for (; k + 4 <= starts[o + 1]; k += 4) {
          a += values[k] * x[index[k]];
          b += values[k + 1] * x[index[k + 1]];
          c += values[k + 2] * x[index[k + 2]];
          d += values[k + 3] * x[index[k + 3]];
        }
        for (; k < starts[o + 1]; ++k) a += values[k] * x[index[k]];
        y[o] = after.rectified((a + b) + (c + d) + after.added(o));
      }
    });
  }
};

ffi::Error ListsOf(ffi::ThreadPool pool, bool relu, Floats x, Floats bias, Floats values, Numbers index,
                   Numbers starts, ffi::ResultBuffer<ffi::F32> y) {
  const int64_t rows = x.dimensions()[0], depth = x.dimensions()[1], columns = y->dimensions()[1];
  if (static_cast<int64_t>(starts.element_count()) != columns + 1) {
    return ffi::Error::InvalidArgument("every output has a list");
  }
  const Lists lists{After(bias, relu),   x.typed_data(),  values.typed_data(), index.typed_data(),
                    starts.typed_data(), y->typed_data(), rows,                depth,
                    columns};
  if (rows == 1) {
    lists.one(pool);
    return ffi::Error::Success();
  }
  for (int64_t row = 0, here; row < rows; row += here) {
    here = std::min<int64_t>(kMost * kLanes, rows - row);
    if (here > 2 * kLanes) {
      lists.in_rows<kLanes, kMost>(pool, row, here);
    } else if (here > kLanes) {
      lists.in_rows<kLanes, 2>(pool, row, here);
    } else if (here > kLanes / 2) {
      lists.in_rows<kLanes, 1>(pool, row, here);
    } else if (here > 4) {
      lists.in_rows<std::min(8, kLanes), 1>(pool, row, here);
    } else {
      lists.in_rows<4, 1>(pool, row, here);
    }
  }
  return ffi::Error::Success();
}

// What a kernel takes: threads, whether to rectify, rows, biases and the packed matrix. It gives one array.
template <typename Binding>
auto taking(Binding binding) {
  return std::move(binding).template Ret<Floats>();
}

template <typename First, typename... Others, typename Binding>
auto taking(Binding binding) {
  return taking<Others...>(std::move(binding).template Arg<First>());
}

template <typename... Matrix>
auto binding() {
  return taking<Floats, Floats, Matrix...>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<bool>("relu"));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcomp_strips, Strips, (binding<Floats, Numbers, Numbers, Numbers>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcomp_coded_strips, CodedStrips, (binding<Codes, Floats, Numbers, Numbers, Numbers>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcomp_lists, ListsOf, (binding<Floats, Numbers, Numbers>()));
