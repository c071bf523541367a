// The native ops as the module offers them: every function checks the shapes of its arrays, releases the interpreter
// lock and works on memory it is given. itk_nir/engine/ops wraps them for torch tensors and states what they compute.
#pragma once
#include <optional>
#include <vector>

#include "arrays.hpp"

namespace itk_nir::checked {

using OptionalArray = std::optional<Array>;
using OptionalConstant = std::optional<Constant>;

void banded(Constant in, Array out, Integers start, Constant weights, int threads);
void banded_adjoint(Constant in, Constant factor, Array out, Integers start, Constant weights, int threads);

void warp(Constant moving, Constant displacement, Matrix grid_to_moving, Square displacement_to_moving, Array warped,
          OptionalArray gradient, int threads);
// The same, of a spline that has been evaluated along x and y: half is (3, nodes along z, y, x).
void warp_spline(Constant moving, Constant half, Integers start, Constant weights, Matrix grid_to_moving,
                 Square displacement_to_moving, Array warped, OptionalArray gradient, int threads);
void resample(Constant moving, OptionalConstant displacement, Matrix grid_to_moving, Square displacement_to_moving,
              float outside, Array out, int threads);
// `matrices` are (3, 4), one a transform; `fields` are their displacements, or None.
void interpolate(Constant image, Matrix grid, const std::vector<ConstantTable> &matrices,
                 const std::vector<OptionalConstant> &fields, Matrix to_index, const std::string &kind, int order,
                 const std::string &window, const std::vector<double> &sigma, double alpha, float outside, Array out,
                 int threads);
// `image` and `out` are (z, y, x, bytes of a value), `outside` is one value.
void nearest(ConstantBytes image, Matrix grid, const std::vector<ConstantTable> &matrices,
             const std::vector<OptionalConstant> &fields, Matrix to_index, ConstantBytes outside, Bytes out,
             int threads);
void displacements(Matrix grid, const std::vector<ConstantTable> &matrices, const std::vector<OptionalConstant> &fields,
                   Array out, int threads);
void bspline_coefficients(Array image, int order, int threads);

double lncc_prepare(Constant fixed, OptionalConstant weight, int radius, float epsilon, Array inverse_count, Array mean,
                    Array inverse_variance, int threads);
// `scratch` is (3, z, y, x); of any shape where there is no gradient.
double lncc(Constant fixed, OptionalConstant weight, Constant inverse_count, Constant mean, Constant inverse_variance,
            Constant moving, int radius, float epsilon, OptionalArray gradient, Array scratch, int threads);

void joint_histogram(Constant position, Constant moving, float low, float scale, Table histogram, int threads);
void joint_histogram_adjoint(Constant position, Constant moving, float low, float scale, ConstantTable derivative,
                             Array gradient, int threads);
// Three sums, and their three derivatives.
std::vector<double> global_sums(Constant fixed, Constant moving, OptionalConstant weight, int threads);
void global_sums_adjoint(Constant fixed, Constant moving, OptionalConstant weight, std::vector<double> derivative,
                         Array gradient, int threads);
// `descriptors` is (z, y, x, 16).
void mind_descriptors(Constant image, Square offsets, int radius, int dimension, Bytes descriptors, int threads);
double mind_difference(ConstantBytes fixed, OptionalConstant weight, ConstantBytes moving, Constant displacement,
                       Matrix grid_to_moving, Square displacement_to_moving, int channels, OptionalArray gradient,
                       int threads);
// The same, of a spline as for warp_spline.
double mind_difference_spline(ConstantBytes fixed, OptionalConstant weight, ConstantBytes moving, Constant half,
                              Integers start, Constant weights, Matrix grid_to_moving, Square displacement_to_moving,
                              int channels, OptionalArray gradient, int threads);

// `costs` is (nodes, labels); `reach` and `block` are x, y, z.
void match_costs(ConstantBytes fixed, ConstantBytes fixed_counts, ConstantBytes moving, ConstantBytes moving_counts,
                 std::vector<int> reach, std::vector<int> block, int unrelated, Costs costs, int threads);
void best_matches(ConstantCosts costs, Constant wanted, std::vector<int> reach, float weight, Array found, Array cost,
                  int threads);

void pack(Constant planar, Array packed, float scale, int threads);
void unpack(Constant packed, Array planar, float scale, int threads);
void compose(Constant outer, Constant inner, Array out, int threads);
void compose_adjoint(Constant outer, Constant inner, Constant grad, Array grad_outer, Array grad_inner, int threads);
void compose_adjoint_inner(Constant outer, Constant inner, Constant grad, Array grad_inner, int threads);
double invert(Constant u, Array v, int iterations, float tolerance, int threads);
void balance(Constant u, Array v, float relaxation, int threads);
void inverse_error(Constant u, Constant v, std::vector<double> scale, Array error, int threads);

void jacobian(Constant u, Array determinant, int threads);
double jacobian_penalty(Constant u, Array gradient, float margin, int corner, int threads);
double diffusion(Constant u, Array gradient, double scale, int threads);

void adam(Array parameter, Constant gradient, Array first, Array second, float beta1, float beta2, float rate,
          float correction, float epsilon, int threads);

}  // namespace itk_nir::checked
