import type { Pass } from '../compiler/pass.ts';
import { addNormBias } from './add-norm-bias.ts';
import { clampMask } from './clamp-mask.ts';
import { convertConstantNodes } from './convert-constant-nodes.ts';
import { decomposeActivations } from './decompose-activations.ts';
import { decomposeBatchNorm } from './decompose-batch-norm.ts';
import { decomposeCumulativeSum } from './decompose-cumulative-sum.ts';
import { decomposeEdgePad } from './decompose-edge-pad.ts';
import { decomposeEinsum } from './decompose-einsum.ts';
import { decomposeElements } from './decompose-elements.ts';
import { decomposeGelu } from './decompose-gelu.ts';
import { decomposeGemm, decomposeGeneralGemm } from './decompose-gemm.ts';
import { decomposeGru, decomposeRnn } from './decompose-gru.ts';
import { decomposeHardSigmoid } from './decompose-hard-sigmoid.ts';
import { decomposeHardSwish } from './decompose-hard-swish.ts';
import { decomposeInstanceNorm } from './decompose-instance-norm.ts';
import { decomposeL1Norm } from './decompose-l1-norm.ts';
import { decomposeLayerNorm } from './decompose-layer-norm.ts';
import { decomposeLstm } from './decompose-lstm.ts';
import { decomposeMeanVariance } from './decompose-mean-variance.ts';
import { decomposeNearestResize } from './decompose-nearest-resize.ts';
import { decomposeOneHot } from './decompose-one-hot.ts';
import { decomposeReductions } from './decompose-reductions.ts';
import { decomposeRmsNorm } from './decompose-rms-norm.ts';
import { decomposeRope } from './decompose-rope.ts';
import { decomposeSilu } from './decompose-silu.ts';
import { decomposeThresholds } from './decompose-thresholds.ts';
import { decomposeTrilu } from './decompose-trilu.ts';
import { decomposeVariadic } from './decompose-variadic.ts';
import { eliminateCommonSubexpressions } from './eliminate-common-subexpressions.ts';
import { eliminateDeadCode } from './eliminate-dead-code.ts';
import { eliminateNoops } from './eliminate-noops.ts';
import { flattenLayerNorm } from './flatten-layer-norm.ts';
import { foldAttentionScale } from './fold-attention-scale.ts';
import { foldConstants } from './fold-constants.ts';
import { foldConvAffine } from './fold-conv-affine.ts';
import { fuseDepthToSpace } from './fuse-depth-to-space.ts';
import { fuseGelu } from './fuse-gelu.ts';
import { fuseHardSwish } from './fuse-hard-swish.ts';
import { fuseLayerNorm } from './fuse-layer-norm.ts';
import { fuseMatmulAdd } from './fuse-matmul-add.ts';
import { fuseRmsNorm } from './fuse-rms-norm.ts';
import { fuseRope } from './fuse-rope.ts';
import { fuseSilu } from './fuse-silu.ts';
import { inlineConstantBranches } from './inline-constant-branches.ts';
import { inlineLocalFunctions } from './inline-local-functions.ts';
import { mergeTransposedGroups } from './merge-transposed-groups.ts';
import { repairEncodings } from './repair-encodings.ts';

/**
 * What an ONNX import goes through, until nothing changes (`runPasses(module, simplify, { untilStable: true })`). Order
 * matters: a reason per line.
 */
export const simplify: readonly Pass[] = [
  inlineLocalFunctions, // first: no other pass looks into the bodies of functions
  convertConstantNodes, // every later pass asks `data`, not for a producer named Constant
  foldConstants, // shape arithmetic becomes numbers, so that no-ops can be recognised
  inlineConstantBranches, // after folding, which decides the conditions
  eliminateNoops, // before CSE, so that two paths that differ by an Identity are equal
  eliminateCommonSubexpressions, // exporters repeat masks, positions and rotary tables in every layer
  eliminateDeadCode, // last: what folding and merging left behind
];

/** Recognises what exporters wrote out, so that every target sees one node where the model has one layer. */
export const fuse: readonly Pass[] = [
  fuseLayerNorm, // before RMSNorm, whose pattern is the second half of a LayerNorm's
  fuseRmsNorm,
  fuseGelu,
  fuseSilu,
  fuseHardSwish,
  foldConvAffine, // after the activations, whose products are not scales of a convolution
  fuseRope, // needs equal tables to be one value, which `simplify` sees to
];

/** What HTP refuses or computes wrongly in the form that models have it, after `fuse`. */
export const lowerForHtp: readonly Pass[] = [
  fuseDepthToSpace, // six axes are one too many
  decomposeGeneralGemm,
  decomposeActivations,
  decomposeBatchNorm, // what fuse left: those behind a convolution are in its weights
  flattenLayerNorm, // before add-norm-bias, which wants a vector
  addNormBias,
  decomposeL1Norm,
  decomposeMeanVariance,
  decomposeReductions,
  decomposeCumulativeSum,
  decomposeEinsum,
  decomposeEdgePad,
  decomposeNearestResize,
  decomposeTrilu,
  clampMask,
  repairEncodings, // of graphs that come quantized
];

/** What TFLite has no operator for, after `fuse`; the layout of images is the lowering's own affair. */
export const lowerForTflite: readonly Pass[] = [
  fuseDepthToSpace, // before the first Reshape is folded into something else
  fuseMatmulAdd, // a product of matrices and its bias are one operator
  decomposeGeneralGemm, // those that are not
  decomposeActivations,
  decomposeThresholds,
  decomposeLstm,
  decomposeGru,
  decomposeRnn,
  decomposeElements,
  decomposeOneHot,
  decomposeBatchNorm, // what fuse left: those behind a convolution are in its weights
  decomposeLayerNorm,
  decomposeRmsNorm,
  decomposeInstanceNorm,
  decomposeVariadic,
  decomposeL1Norm,
  decomposeReductions,
  decomposeEinsum,
  decomposeHardSigmoid,
  decomposeEdgePad,
  decomposeTrilu,
  mergeTransposedGroups,
  eliminateNoops, // the Identities that stand for an LSTM's outputs
  eliminateDeadCode, // constants of what was rewritten
];

/** Every generic pass that needs no options, by name: for `--passes`, for tests and for the documentation. */
export const PASSES: ReadonlyMap<string, Pass> = new Map(
  [
    addNormBias,
    clampMask,
    convertConstantNodes,
    decomposeActivations,
    decomposeBatchNorm,
    decomposeEdgePad,
    decomposeEinsum,
    decomposeCumulativeSum,
    decomposeGelu,
    decomposeGemm,
    decomposeGeneralGemm,
    decomposeHardSigmoid,
    decomposeHardSwish,
    decomposeInstanceNorm,
    decomposeL1Norm,
    decomposeLayerNorm,
    decomposeElements,
    decomposeGru,
    decomposeOneHot,
    decomposeRnn,
    decomposeThresholds,
    decomposeLstm,
    decomposeMeanVariance,
    decomposeNearestResize,
    decomposeReductions,
    decomposeRmsNorm,
    decomposeRope,
    decomposeSilu,
    decomposeTrilu,
    decomposeVariadic,
    eliminateCommonSubexpressions,
    eliminateDeadCode,
    eliminateNoops,
    flattenLayerNorm,
    foldAttentionScale,
    foldConstants,
    foldConvAffine,
    fuseDepthToSpace,
    fuseGelu,
    fuseHardSwish,
    fuseLayerNorm,
    fuseMatmulAdd,
    fuseRmsNorm,
    fuseRope,
    fuseSilu,
    inlineConstantBranches,
    inlineLocalFunctions,
    mergeTransposedGroups,
    repairEncodings,
  ].map((pass) => [pass.name, pass]),
);
