// What the gater's kernels compute, layer by layer and in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "backends/cuda/plan/gater_arguments.h"

namespace trt_moe::testing {

// [rows, columns, channels]
struct Layer {
  Layer(int rows_, int columns_, int channels_)
      : rows(rows_),
        columns(columns_),
        channels(channels_),
        values(static_cast<std::size_t>(rows_) * static_cast<std::size_t>(columns_) *
               static_cast<std::size_t>(channels_)) {}

  double& at(int row, int column, int channel) {
    return values[static_cast<std::size_t>((row * columns + column) * channels + channel)];
  }
  double padded(int row, int column, int channel) {
    const bool inside = row >= 0 && row < rows && column >= 0 && column < columns;
    return inside ? at(row, column, channel) : 0.0;
  }

  int rows;
  int columns;
  int channels;
  std::vector<double> values;
};

// With a ReLU. weights: [side, side, inputs, outputs].
inline Layer convolve(Layer in, int side, int stride, int outputs, const float* weights, const float* bias) {
  const int ring = side / 2;
  Layer out((in.rows - 1) / stride + 1, (in.columns - 1) / stride + 1, outputs);
  for (int row = 0; row < out.rows; ++row) {
    for (int column = 0; column < out.columns; ++column) {
      for (int output = 0; output < outputs; ++output) {
        double sum = bias[output];
        for (int tap = 0; tap < side * side; ++tap) {
          for (int i = 0; i < in.channels; ++i) {
            sum += in.padded(stride * row + tap / side - ring, stride * column + tap % side - ring, i) *
                   weights[(tap * in.channels + i) * outputs + output];
          }
        }
        out.at(row, column, output) = std::max(sum, 0.0);
      }
    }
  }
  return out;
}

inline Layer pool(Layer in) {
  Layer out(in.rows / 2, in.columns / 2, in.channels);
  for (int row = 0; row < out.rows; ++row) {
    for (int column = 0; column < out.columns; ++column) {
      for (int i = 0; i < in.channels; ++i) {
        out.at(row, column, i) = std::max({in.at(2 * row, 2 * column, i), in.at(2 * row, 2 * column + 1, i),
                                           in.at(2 * row + 1, 2 * column, i), in.at(2 * row + 1, 2 * column + 1, i)});
      }
    }
  }
  return out;
}

inline Layer fire(Layer in, int squeezed, int outputs, const cuda::FireWeights& weights) {
  Layer narrow = convolve(std::move(in), 1, 1, squeezed, weights.squeeze, weights.squeeze_bias);
  return convolve(std::move(narrow), 3, 1, outputs, weights.expand, weights.expand_bias);
}

inline Layer resize(const cuda::GaterStemArguments& a, int image) {
  Layer out(a.rows, a.columns, a.channels);
  const auto pixel = [&](int row, int column, int channel) {
    const int at = ((image * a.height + row) * a.width + column) * a.channels + channel;
    return static_cast<double>(a.images[at]) * a.scale[channel] + a.bias[channel];
  };
  const auto place = [](int to, int from, int sides) { return std::max((to + 0.5) * from / sides - 0.5, 0.0); };
  for (int row = 0; row < a.rows; ++row) {
    for (int column = 0; column < a.columns; ++column) {
      const double down = place(row, a.height, a.rows);
      const double right = place(column, a.width, a.columns);
      const int top = static_cast<int>(down);
      const int left = static_cast<int>(right);
      const int below = std::min(top + 1, a.height - 1);
      const int beside = std::min(left + 1, a.width - 1);
      for (int i = 0; i < a.channels; ++i) {
        const double above = std::lerp(pixel(top, left, i), pixel(top, beside, i), right - left);
        const double under = std::lerp(pixel(below, left, i), pixel(below, beside, i), right - left);
        out.at(row, column, i) = std::lerp(above, under, down - top);
      }
    }
  }
  return out;
}

inline void gater_reference(const cuda::GaterRun& run) {
  constexpr int kWidth = cuda::kGaterWidth;
  for (int image = 0; image < run.images; ++image) {
    Layer layer = convolve(resize(run.stem, image), 3, 2, kWidth, run.stem.convolution, run.stem.convolution_bias);
    layer = pool(fire(std::move(layer), kWidth / 2, kWidth, run.stem.fire));
    if (run.third) layer = pool(fire(std::move(layer), kWidth / 2, 2 * kWidth, run.middle.fire));
    const int inputs = layer.channels;
    layer = fire(std::move(layer), inputs / 2, 2 * inputs, run.head.fire);
    for (int expert = 0; expert < run.head.experts; ++expert) {
      double logit = run.head.head_bias[expert];
      for (int i = 0; i < layer.channels; ++i) {
        double sum = 0;
        for (int place = 0; place < layer.rows * layer.columns; ++place) sum += layer.at(0, place, i);
        logit += sum / (layer.rows * layer.columns) * run.head.head[expert * layer.channels + i];
      }
      run.head.logits[image * run.head.experts + expert] = static_cast<float>(logit);
    }
  }
}

}  // namespace trt_moe::testing
