import type { Pass } from '../compiler/pass.ts';
import { convertConstantNodes } from './convert-constant-nodes.ts';
import { decomposeGelu } from './decompose-gelu.ts';
import { decomposeGemm } from './decompose-gemm.ts';
import { decomposeLayerNorm } from './decompose-layer-norm.ts';
import { decomposeRmsNorm } from './decompose-rms-norm.ts';
import { decomposeRope } from './decompose-rope.ts';
import { decomposeSilu } from './decompose-silu.ts';
import { eliminateCommonSubexpressions } from './eliminate-common-subexpressions.ts';
import { eliminateDeadCode } from './eliminate-dead-code.ts';
import { eliminateNoops } from './eliminate-noops.ts';
import { foldAttentionScale } from './fold-attention-scale.ts';
import { foldConstants } from './fold-constants.ts';
import { fuseGelu } from './fuse-gelu.ts';
import { fuseLayerNorm } from './fuse-layer-norm.ts';
import { fuseMatmulAdd } from './fuse-matmul-add.ts';
import { fuseRmsNorm } from './fuse-rms-norm.ts';
import { fuseRope } from './fuse-rope.ts';
import { fuseSilu } from './fuse-silu.ts';
import { inlineConstantBranches } from './inline-constant-branches.ts';
import { inlineLocalFunctions } from './inline-local-functions.ts';

/** What an ONNX import goes through; after it, every target sees the same few forms. Order matters: a reason per line. */
export const simplify: readonly Pass[] = [
  convertConstantNodes, // every later pass asks `data`, not for a producer named Constant
  foldConstants, // shape arithmetic becomes numbers, so that no-ops can be recognised
  eliminateNoops, // before CSE, so that two paths that differ by an Identity are equal
  eliminateCommonSubexpressions, // exporters repeat masks, positions and rotary tables in every layer
  eliminateDeadCode, // what folding and merging left behind
];

/** Every generic pass that needs no options, by name: for `--passes`, for tests and for the documentation. */
export const PASSES: ReadonlyMap<string, Pass> = new Map(
  [
    convertConstantNodes,
    decomposeGelu,
    decomposeGemm,
    decomposeLayerNorm,
    decomposeRmsNorm,
    decomposeRope,
    decomposeSilu,
    eliminateCommonSubexpressions,
    eliminateDeadCode,
    eliminateNoops,
    foldAttentionScale,
    foldConstants,
    fuseGelu,
    fuseLayerNorm,
    fuseMatmulAdd,
    fuseRmsNorm,
    fuseRope,
    fuseSilu,
    inlineConstantBranches,
    inlineLocalFunctions,
  ].map((pass) => [pass.name, pass]),
);
