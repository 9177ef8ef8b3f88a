#include "backends/cuda/plan/gater_net.h"

#include <algorithm>
#include <limits>
#include <string>

#include "backends/cuda/plan/align.h"
#include "core/error.h"

namespace trt_moe::cuda {

namespace {

constexpr std::size_t kWidth = kGaterWidth;
constexpr std::size_t kLeastSide = 8;
constexpr std::size_t kTaps = 9;
constexpr std::size_t kMost = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMostImages = 65535;

// Of a stride of two, and of a pooling after it.
std::size_t halved(std::size_t side) { return (side + 1) / 2; }
std::size_t pooled(std::size_t side) { return side / 2; }

struct Sides {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t area() const noexcept { return rows * columns; }
};

Sides after_stem(const GaterNet& net) { return {pooled(halved(net.rows)), pooled(halved(net.columns))}; }

// What the last Fire block sees.
Sides before_head(const GaterNet& net) {
  const Sides sides = after_stem(net);
  return net.third ? Sides{pooled(sides.rows), pooled(sides.columns)} : sides;
}

std::size_t features(const GaterNet& net) { return (net.third ? 4 : 2) * kWidth; }

// Hands out the parts of a block of floats, one after the other.
class Parts {
 public:
  explicit Parts(std::uintptr_t block) : block_(block) {}

  const float* take(std::size_t count) {
    const std::uintptr_t at = block_ + taken_ * sizeof(float);
    taken_ += count;
    return reinterpret_cast<const float*>(at);
  }
  FireWeights take_fire(std::size_t inputs, std::size_t squeezed, std::size_t outputs) {
    FireWeights fire;
    fire.squeeze = take(inputs * squeezed);
    fire.squeeze_bias = take(squeezed);
    fire.expand = take(kTaps * squeezed * outputs);
    fire.expand_bias = take(outputs);
    return fire;
  }
  std::size_t taken() const noexcept { return taken_; }

 private:
  std::uintptr_t block_;
  std::size_t taken_ = 0;
};

// Points all that a run reads to its place; returns how many floats there are.
std::size_t place_weights(const GaterNet& net, std::uintptr_t block, GaterRun& run) {
  Parts parts(block);
  run.stem.convolution = parts.take(kTaps * net.images.channels * kWidth);
  run.stem.convolution_bias = parts.take(kWidth);
  run.stem.fire = parts.take_fire(kWidth, kWidth / 2, kWidth);
  if (net.third) run.middle.fire = parts.take_fire(kWidth, kWidth / 2, 2 * kWidth);
  run.head.fire =
      net.third ? parts.take_fire(2 * kWidth, kWidth, 4 * kWidth) : parts.take_fire(kWidth, kWidth / 2, 2 * kWidth);
  run.head.head = parts.take(net.experts * features(net));
  run.head.head_bias = parts.take(net.experts);
  // Behind all that is read in fours, as they may be of any number.
  run.stem.scale = parts.take(net.images.channels);
  run.stem.bias = parts.take(net.images.channels);
  return parts.taken();
}

// Where what lies between the kernels begins, in bytes of the block.
struct Between {
  std::size_t finished = 0;
  std::size_t stem = 0;
  std::size_t middle = 0;
  std::size_t sums = 0;
  std::size_t end = 0;
};

Between between(const GaterNet& net, std::size_t images) {
  const Sides stem = after_stem(net);
  const Sides head = before_head(net);
  Between at;
  at.finished = aligned(gater_weights(net) * sizeof(float));
  at.stem = aligned(at.finished + images * sizeof(std::uint32_t));
  at.middle = at.stem + aligned(images * stem.area() * kWidth * sizeof(float));
  at.sums = at.middle + (net.third ? aligned(images * head.area() * 2 * kWidth * sizeof(float)) : 0);
  const std::size_t tiles = tiles_of(head.rows, kHeadTile) * tiles_of(head.columns, kHeadTile);
  at.end = at.sums + images * tiles * features(net) * sizeof(float);
  return at;
}

}  // namespace

void check_gater(const GaterNet& net, std::size_t most_images) {
  const std::size_t channels = net.images.channels;
  if (net.images.bytes() == 0 || channels > kMaxGaterChannels || net.rows < kLeastSide || net.columns < kLeastSide ||
      net.experts < 2) {
    throw Error(ErrorKind::kInput, "a gater of " + std::to_string(net.experts) + " experts at " +
                                       std::to_string(net.rows) + " x " + std::to_string(net.columns) +
                                       " and images of " + std::to_string(channels) +
                                       " channels; expected experts >= 2, sides >= " + std::to_string(kLeastSide) +
                                       " and 1 to " + std::to_string(kMaxGaterChannels) + " channels");
  }
  // The kernels count in int, and an image is a row of their grid.
  const std::size_t largest = std::max({net.images.bytes(), most_images * after_stem(net).area() * kWidth,
                                        most_images * before_head(net).area() * features(net)});
  if (largest > kMost || most_images > kMostImages) {
    throw Error(ErrorKind::kInput, "a gater of " + std::to_string(most_images) + " images of " +
                                       std::to_string(net.images.bytes()) + " bytes at " + std::to_string(net.rows) +
                                       " x " + std::to_string(net.columns) + " is too large; use smaller batch sizes");
  }
}

std::size_t gater_weights(const GaterNet& net) {
  GaterRun unused;
  return place_weights(net, 0, unused);
}

std::size_t gater_bytes(const GaterNet& net, std::size_t most_images) { return between(net, most_images).end; }

std::size_t gater_bytes_to_write(const GaterNet& net, std::size_t most_images) {
  return between(net, most_images).stem;
}

GaterRun gater_run(const GaterNet& net, std::size_t most_images, std::uintptr_t block, std::uintptr_t images,
                   std::uintptr_t logits, std::size_t count) {
  const Between at = between(net, most_images);
  const Sides stem = after_stem(net);
  const Sides head = before_head(net);
  const auto in_block = [block](std::size_t offset) { return reinterpret_cast<float*>(block + offset); };
  GaterRun run;
  place_weights(net, block, run);
  run.third = net.third;
  run.images = static_cast<int>(count);

  run.stem.images = reinterpret_cast<const std::uint8_t*>(images);
  run.stem.out = in_block(at.stem);
  run.stem.height = static_cast<int>(net.images.height);
  run.stem.width = static_cast<int>(net.images.width);
  run.stem.channels = static_cast<int>(net.images.channels);
  run.stem.rows = static_cast<int>(net.rows);
  run.stem.columns = static_cast<int>(net.columns);
  run.stem.down = static_cast<float>(net.images.height) / static_cast<float>(net.rows);
  run.stem.right = static_cast<float>(net.images.width) / static_cast<float>(net.columns);
  run.stem.out_rows = static_cast<int>(stem.rows);
  run.stem.out_columns = static_cast<int>(stem.columns);

  run.middle.in = run.stem.out;
  run.middle.out = in_block(at.middle);
  run.middle.rows = run.stem.out_rows;
  run.middle.columns = run.stem.out_columns;

  run.head.in = net.third ? run.middle.out : run.stem.out;
  run.head.sums = in_block(at.sums);
  run.head.finished = reinterpret_cast<std::uint32_t*>(block + at.finished);
  run.head.logits = reinterpret_cast<float*>(logits);
  run.head.rows = static_cast<int>(head.rows);
  run.head.columns = static_cast<int>(head.columns);
  run.head.experts = static_cast<int>(net.experts);
  return run;
}

}  // namespace trt_moe::cuda
