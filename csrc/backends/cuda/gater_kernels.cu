#include "backends/cuda/gater_kernels.h"

namespace trt_moe::cuda {

namespace {

constexpr int kThreads = 256;  // of a block of every kernel
constexpr int kWindow = 4;     // outputs of a thread: 2 x 2, what a pooling takes together
constexpr int kTaps = 9;

// From compute capability 9.0 on, a kernel may begin before the one ahead of it has ended: with what does not depend on
// that.
__device__ void let_the_next_begin() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ void wait_for_the_one_ahead() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// blockIdx.x of a grid of tiles over so many columns, blockIdx.y: an image.
struct Tile {
  __device__ Tile(int columns, int tile) {
    const int across = (columns + tile - 1) / tile;
    row = static_cast<int>(blockIdx.x) / across * tile;
    column = static_cast<int>(blockIdx.x) % across * tile;
  }
  int row;
  int column;
};

__device__ bool inside(int row, int column, int rows, int columns) {
  return row >= 0 && row < rows && column >= 0 && column < columns;
}

// A Fire block on a tile of kTile x kTile outputs.
template <int kIn, int kOut, int kTile>
struct Fire {
  static constexpr int kInputs = kIn;
  static constexpr int kSqueezed = kIn / 2;
  static constexpr int kOutputs = kOut;
  static constexpr int kSide = kTile + 2;  // of what is squeezed
  static constexpr int kPlaces = kSide * kSide;
  static constexpr int kWindows = kTile / 2 * (kTile / 2);
  static constexpr int kWorkers = kWindows * kOutputs;  // threads that expand
  static constexpr int kSqueezeBias = kInputs * kSqueezed;
  static constexpr int kExpand = kSqueezeBias + kSqueezed;
  static constexpr int kExpandBias = kExpand + kTaps * kSqueezed * kOutputs;
  static constexpr int kWeights = kExpandBias + kOutputs;
  static constexpr int kFours = kWeights / 4;
  static_assert(kWorkers <= kThreads && kSqueezed % 4 == 0, "a thread has one output of one window, in fours");
  static_assert(kWeights % 4 == 0, "weights are fetched in fours");

  // A thread's share of the weights, all of it on its way at once: memory takes longer to answer than a kernel to
  // compute, and nothing should wait for it in turns.
  class Fetched {
   public:
    __device__ explicit Fetched(const FireWeights& from) {
      const auto* const fours = reinterpret_cast<const float4*>(from.squeeze);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (place(i) < kFours) share_[i] = fours[place(i)];
      }
    }
    __device__ void store(float* weights) const {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (place(i) < kFours) reinterpret_cast<float4*>(weights)[place(i)] = share_[i];
      }
    }

   private:
    static constexpr int kEach = (kFours + kThreads - 1) / kThreads;
    __device__ static int place(int i) { return i * kThreads + static_cast<int>(threadIdx.x); }
    float4 share_[kEach];
  };

  // Squeezes the tile and the ring of places around it, zeros outside the image: what a 3 x 3 convolution pads with.
  // pixel(row, column): where the inputs of one lie, rows and columns of the image.
  template <typename Pixel>
  __device__ static void squeeze(const float* weights, Tile tile, int rows, int columns, Pixel pixel, float* squeezed) {
    const int output = static_cast<int>(threadIdx.x) % kSqueezed;
    for (int place = static_cast<int>(threadIdx.x) / kSqueezed; place < kPlaces; place += kThreads / kSqueezed) {
      const int row = tile.row + place / kSide - 1;
      const int column = tile.column + place % kSide - 1;
      float sum = 0.0F;
      if (inside(row, column, rows, columns)) {
        const auto* const inputs = reinterpret_cast<const float4*>(pixel(row, column));
        sum = weights[kSqueezeBias + output];
#pragma unroll
        for (int i = 0; i < kInputs / 4; ++i) {
          const float4 four = inputs[i];
          const float* const of_input = weights + 4 * i * kSqueezed + output;
          sum += four.x * of_input[0] + four.y * of_input[kSqueezed] + four.z * of_input[2 * kSqueezed] +
                 four.w * of_input[3 * kSqueezed];
        }
        sum = fmaxf(sum, 0.0F);
      }
      squeezed[place * kSqueezed + output] = sum;
    }
  }

  // One output of the 3 x 3 convolution over what squeeze wrote, at 2 x 2 places of the tile; before the ReLU.
  __device__ static void expand(const float* weights, const float* squeezed, int row, int column, int output,
                                float (&sums)[kWindow]) {
    for (float& sum : sums) sum = weights[kExpandBias + output];
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
      for (int i = 0; i < kSqueezed / 4; ++i) {
        const float* const of_input = weights + kExpand + (tap * kSqueezed + 4 * i) * kOutputs + output;
        const float weight[4] = {of_input[0], of_input[kOutputs], of_input[2 * kOutputs], of_input[3 * kOutputs]};
#pragma unroll
        for (int place = 0; place < kWindow; ++place) {
          const int at = (row + tap / 3 + place / 2) * kSide + column + tap % 3 + place % 2;
          const float4 four = reinterpret_cast<const float4*>(squeezed + at * kSqueezed)[i];
          sums[place] += four.x * weight[0] + four.y * weight[1] + four.z * weight[2] + four.w * weight[3];
        }
      }
    }
  }
};

// Where in its tile a thread expands.
template <typename Block, int kTile>
struct Place {
  __device__ Place() {
    const int thread = static_cast<int>(threadIdx.x);
    output = thread % Block::kOutputs;
    row = 2 * (thread / Block::kOutputs / (kTile / 2));
    column = 2 * (thread / Block::kOutputs % (kTile / 2));
  }
  int output;
  int row;
  int column;
};

__device__ float largest(const float (&values)[kWindow]) {
  return fmaxf(fmaxf(values[0], values[1]), fmaxf(values[2], values[3]));
}

// A place of bilinear interpolation along one side, as torch takes it without aligned corners.
struct Between {
  __device__ Between(int place, float scale, int from) {
    const float at = fmaxf(scale * (static_cast<float>(place) + 0.5F) - 0.5F, 0.0F);
    first = static_cast<int>(at);
    second = first + (first < from - 1 ? 1 : 0);
    share = at - static_cast<float>(first);
  }
  int first;
  int second;
  float share;  // of the second
};

// One place of the resized image, scaled: all that it takes of the image is on its way at once.
template <int kChannels>
__device__ void resize(const GaterStemArguments& a, const std::uint8_t* image, int row, int column, float* to) {
  const Between down(row, a.down, a.height);
  const Between right(column, a.right, a.width);
  const std::uint8_t* const above = image + down.first * a.width * kChannels;
  const std::uint8_t* const below = image + down.second * a.width * kChannels;
  float corners[4][kChannels];
#pragma unroll
  for (int channel = 0; channel < kChannels; ++channel) {
    corners[0][channel] = above[right.first * kChannels + channel];
    corners[1][channel] = above[right.second * kChannels + channel];
    corners[2][channel] = below[right.first * kChannels + channel];
    corners[3][channel] = below[right.second * kChannels + channel];
  }
#pragma unroll
  for (int channel = 0; channel < kChannels; ++channel) {
    const float top = (1.0F - right.share) * corners[0][channel] + right.share * corners[1][channel];
    const float bottom = (1.0F - right.share) * corners[2][channel] + right.share * corners[3][channel];
    to[channel] = ((1.0F - down.share) * top + down.share * bottom) * a.scale[channel] + a.bias[channel];
  }
}

// One output of the first convolution: kChannels values of three pixels lie one behind the other in every row.
template <int kChannels>
__device__ float convolve(const float* corner, int row_of_values, const float (&weights)[kTaps * kMaxGaterChannels]) {
  float sum = 0.0F;
#pragma unroll
  for (int row = 0; row < 3; ++row) {
#pragma unroll
    for (int i = 0; i < 3 * kChannels; ++i) sum += corner[row * row_of_values + i] * weights[row * 3 * kChannels + i];
  }
  return sum;
}

// Resize, scale and bias, a convolution of stride two, a Fire block, a pooling.
__global__ void __launch_bounds__(kThreads) gater_stem(const __grid_constant__ GaterStemArguments a) {
  using Block = Fire<kGaterWidth, kGaterWidth, kStemTile>;
  constexpr int kResized = 2 * (Block::kSide - 1) + 3;  // rows and columns of what the convolution reads
  __shared__ float resized[kResized * kResized * kMaxGaterChannels];
  alignas(16) __shared__ float convolved[Block::kPlaces * kGaterWidth];
  alignas(16) __shared__ float squeezed[Block::kPlaces * Block::kSqueezed];
  alignas(16) __shared__ float fire_weights[Block::kWeights];
  let_the_next_begin();
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = (a.rows + 1) / 2;  // of the convolution
  const int columns = (a.columns + 1) / 2;
  const Tile tile(2 * a.out_columns, kStemTile);

  const int output = thread % kGaterWidth;
  float weights[kTaps * kMaxGaterChannels];
#pragma unroll
  for (int i = 0; i < kTaps * kMaxGaterChannels; ++i) {
    weights[i] = i < kTaps * a.channels ? a.convolution[i * kGaterWidth + output] : 0.0F;
  }
  const float bias = a.convolution_bias[output];
  const typename Block::Fetched fire(a.fire);

  const std::uint8_t* const image =
      a.images + static_cast<std::size_t>(blockIdx.y) * static_cast<std::size_t>(a.height * a.width * a.channels);
  const int first_row = 2 * (tile.row - 1) - 1;
  const int first_column = 2 * (tile.column - 1) - 1;
  for (int place = thread; place < kResized * kResized; place += kThreads) {
    const int row = first_row + place / kResized;
    const int column = first_column + place % kResized;
    float* const to = resized + place * a.channels;
    if (!inside(row, column, a.rows, a.columns)) {
      for (int channel = 0; channel < a.channels; ++channel) to[channel] = 0.0F;
      continue;
    }
    switch (a.channels) {
      case 1: resize<1>(a, image, row, column, to); break;
      case 2: resize<2>(a, image, row, column, to); break;
      case 3: resize<3>(a, image, row, column, to); break;
      default: resize<4>(a, image, row, column, to); break;
    }
  }
  fire.store(fire_weights);
  __syncthreads();

  for (int place = thread / kGaterWidth; place < Block::kPlaces; place += kThreads / kGaterWidth) {
    const float* const corner =
        resized + (2 * (place / Block::kSide) * kResized + 2 * (place % Block::kSide)) * a.channels;
    const int row_of_values = kResized * a.channels;
    float sum = bias;
    switch (a.channels) {
      case 1: sum += convolve<1>(corner, row_of_values, weights); break;
      case 2: sum += convolve<2>(corner, row_of_values, weights); break;
      case 3: sum += convolve<3>(corner, row_of_values, weights); break;
      default: sum += convolve<4>(corner, row_of_values, weights); break;
    }
    convolved[place * kGaterWidth + output] = fmaxf(sum, 0.0F);
  }
  __syncthreads();

  const auto pixel = [&](int row, int column) {
    return convolved + ((row - tile.row + 1) * Block::kSide + column - tile.column + 1) * kGaterWidth;
  };
  Block::squeeze(fire_weights, tile, rows, columns, pixel, squeezed);
  __syncthreads();

  const Place<Block, kStemTile> at;
  const int out_row = (tile.row + at.row) / 2;
  const int out_column = (tile.column + at.column) / 2;
  if (thread >= Block::kWorkers || out_row >= a.out_rows || out_column >= a.out_columns) return;
  float sums[kWindow];
  Block::expand(fire_weights, squeezed, at.row, at.column, at.output, sums);
  const int place = (static_cast<int>(blockIdx.y) * a.out_rows + out_row) * a.out_columns + out_column;
  a.out[place * kGaterWidth + at.output] = fmaxf(largest(sums), 0.0F);
}

// A Fire block and a pooling.
__global__ void __launch_bounds__(kThreads) gater_middle(const __grid_constant__ GaterMiddleArguments a) {
  using Block = Fire<kGaterWidth, 2 * kGaterWidth, kMiddleTile>;
  alignas(16) __shared__ float squeezed[Block::kPlaces * Block::kSqueezed];
  alignas(16) __shared__ float fire_weights[Block::kWeights];
  let_the_next_begin();
  const typename Block::Fetched fire(a.fire);
  const int image = static_cast<int>(blockIdx.y);
  const Tile tile(a.columns / 2 * 2, kMiddleTile);
  wait_for_the_one_ahead();
  fire.store(fire_weights);
  __syncthreads();
  const auto pixel = [&](int row, int column) {
    return a.in + ((image * a.rows + row) * a.columns + column) * Block::kInputs;
  };
  Block::squeeze(fire_weights, tile, a.rows, a.columns, pixel, squeezed);
  __syncthreads();

  const Place<Block, kMiddleTile> at;
  const int out_row = (tile.row + at.row) / 2;
  const int out_column = (tile.column + at.column) / 2;
  if (static_cast<int>(threadIdx.x) >= Block::kWorkers || out_row >= a.rows / 2 || out_column >= a.columns / 2) return;
  float sums[kWindow];
  Block::expand(fire_weights, squeezed, at.row, at.column, at.output, sums);
  const int place = (image * (a.rows / 2) + out_row) * (a.columns / 2) + out_column;
  a.out[place * Block::kOutputs + at.output] = fmaxf(largest(sums), 0.0F);
}

// The last Fire block, the mean over all places, the linear layer. Of an image's blocks the one that ends last adds up
// what all found, always in the same order.
template <int kInputs>
__global__ void __launch_bounds__(kThreads) gater_head(const __grid_constant__ GaterHeadArguments a) {
  using Block = Fire<kInputs, 2 * kInputs, kHeadTile>;
  constexpr int kOutputs = Block::kOutputs;
  constexpr int kGroups = kThreads / kOutputs;  // of tiles, added up beside each other
  constexpr int kAtOnce = 12;                   // sums of tiles that a thread asks for; those of 96 x 96 pixels are 9
  static_assert(Block::kWindows == 1, "a block's sum of an output is one thread's");
  alignas(16) __shared__ float squeezed[Block::kPlaces * Block::kSqueezed];
  alignas(16) __shared__ float fire_weights[Block::kWeights];
  __shared__ float of_group[kGroups * kOutputs];
  __shared__ float means[kOutputs];
  __shared__ bool is_last;
  const typename Block::Fetched fire(a.fire);
  const int thread = static_cast<int>(threadIdx.x);
  const int output = thread % kOutputs;
  const int group = thread / kOutputs;
  // Of the linear layer, which the block that ends last computes, a group of threads an expert.
  const float head = group < a.experts ? a.head[thread] : 0.0F;
  const float head_bias = thread < a.experts ? a.head_bias[thread] : 0.0F;
  const int image = static_cast<int>(blockIdx.y);
  const int tiles = static_cast<int>(gridDim.x);
  const Tile tile(a.columns, kHeadTile);
  wait_for_the_one_ahead();
  fire.store(fire_weights);
  __syncthreads();
  const auto pixel = [&](int row, int column) {
    return a.in + ((image * a.rows + row) * a.columns + column) * kInputs;
  };
  Block::squeeze(fire_weights, tile, a.rows, a.columns, pixel, squeezed);
  __syncthreads();

  float* const of_tile = a.sums + static_cast<std::size_t>(image * tiles) * kOutputs;
  if (thread < Block::kWorkers) {
    float sums[kWindow];
    Block::expand(fire_weights, squeezed, 0, 0, thread, sums);
    float whole = 0.0F;
    for (int place = 0; place < kWindow; ++place) {
      const bool counts = inside(tile.row + place / 2, tile.column + place % 2, a.rows, a.columns);
      whole += counts ? fmaxf(sums[place], 0.0F) : 0.0F;
    }
    of_tile[static_cast<int>(blockIdx.x) * kOutputs + thread] = whole;
  }
  __syncthreads();
  if (thread == 0) {
    __threadfence();
    is_last = atomicAdd(&a.finished[image], 1U) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;

  // Written by other blocks: not out of a cache of this one's.
  const volatile float* const found = of_tile;
  float sum = 0.0F;
  for (int first = group; first < tiles; first += kGroups * kAtOnce) {
    float few[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * kGroups;
      few[i] = at < tiles ? found[at * kOutputs + output] : 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += few[i];
  }
  of_group[thread] = sum;
  __syncthreads();
  if (thread < kOutputs) {
    float whole = 0.0F;
    for (int i = 0; i < kGroups; ++i) whole += of_group[i * kOutputs + thread];
    means[thread] = whole / static_cast<float>(a.rows * a.columns);
  }
  __syncthreads();
  for (int first = 0; first < a.experts; first += kGroups) {
    const int experts = min(kGroups, a.experts - first);
    if (group < experts) of_group[thread] = means[output] * (first == 0 ? head : a.head[first * kOutputs + thread]);
    __syncthreads();
    if (thread < experts) {
      float logit = first == 0 ? head_bias : a.head_bias[first + thread];
#pragma unroll 8
      for (int i = 0; i < kOutputs; ++i) logit += of_group[thread * kOutputs + i];
      a.logits[image * a.experts + first + thread] = logit;
    }
    __syncthreads();
  }
  if (thread == 0) a.finished[image] = 0;
}

dim3 grid_of(int rows, int columns, int tile, int images) {
  const auto of = [tile](int side) { return tiles_of(static_cast<std::size_t>(side), static_cast<std::size_t>(tile)); };
  return dim3(static_cast<unsigned>(of(rows) * of(columns)), static_cast<unsigned>(images));
}

}  // namespace

GaterKernels gater_kernels(const GaterRun& run) {
  GaterKernels found;
  const auto add = [&](const void* kernel, int rows, int columns, int tile, const void* arguments) {
    found.kernels[found.count++] = {{kernel, grid_of(rows, columns, tile, run.images), dim3(kThreads)}, arguments};
  };
  add(kernel_address(gater_stem), 2 * run.stem.out_rows, 2 * run.stem.out_columns, kStemTile, &run.stem);
  if (run.third) {
    add(kernel_address(gater_middle), run.middle.rows / 2 * 2, run.middle.columns / 2 * 2, kMiddleTile, &run.middle);
  }
  const void* const head =
      run.third ? kernel_address(gater_head<2 * kGaterWidth>) : kernel_address(gater_head<kGaterWidth>);
  add(head, run.head.rows, run.head.columns, kHeadTile, &run.head);
  return found;
}

std::array<const void*, 4> all_gater_kernels() {
  return {kernel_address(gater_stem), kernel_address(gater_middle), kernel_address(gater_head<kGaterWidth>),
          kernel_address(gater_head<2 * kGaterWidth>)};
}

}  // namespace trt_moe::cuda
