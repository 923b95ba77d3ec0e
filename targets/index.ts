import { htpFormat, litertFormat, type NumberFormat, onnxFormat } from '../calibration/recipe.ts';
import {
  genieContract,
  genieRowsContract,
  type IoContract,
  litertLmContract,
  litertNpuContract,
  mediatekContract,
  plainContract,
} from '../passes/io-contract.ts';
import { hfTarget } from './hf/hf-target.ts';
import type { ModelTarget } from './model-target.ts';
import { onnxModelTarget } from './onnx/onnx-model.ts';
import { onnxTarget } from './onnx/onnx-target.ts';
import { qnnModelTarget } from './qnn/qnn-model.ts';
import { qnnTarget } from './qnn/qnn-target.ts';
import type { DecoderTarget, EmbeddingChoice, ModelTargetName, Profile, TargetName } from './target.ts';
import { tfliteModelTarget } from './tflite/tflite-model.ts';
import { tfliteTarget } from './tflite/tflite-target.ts';

/** Every target that compiles decoders. */
export const decoderTargets: Readonly<Record<TargetName, DecoderTarget>> = {
  onnx: onnxTarget,
  qnn: qnnTarget,
  tflite: tfliteTarget,
  hf: hfTarget,
};

/** Every target that compiles ONNX models. */
export const modelTargets: Readonly<Record<ModelTargetName, ModelTarget>> = {
  onnx: onnxModelTarget,
  qnn: qnnModelTarget,
  tflite: tfliteModelTarget,
};

export const TARGET_NAMES: readonly TargetName[] = ['onnx', 'qnn', 'tflite', 'hf'];

const PROFILE_CONTRACTS: Readonly<Record<Profile, IoContract>> = {
  npu: litertNpuContract,
  'litert-lm': litertLmContract,
  mediatek: mediatekContract,
};

/**
 * The number format and the I/O contract of a target.
 * @param profile the runtime that a TFLite file is for
 * @param embedding where the HTP's graphs have their embedding; the other targets' contracts say so themselves
 */
export function formatOf(
  name: TargetName,
  embedding: EmbeddingChoice = 'in-graph',
  profile: Profile = 'npu',
): { readonly format: NumberFormat; readonly contract: IoContract } {
  switch (name) {
    // A checkpoint that follows no artifact has the weights of the neutral one.
    case 'hf':
    case 'onnx':
      return { format: onnxFormat, contract: plainContract };
    case 'qnn':
      return { format: htpFormat, contract: embedding === 'in-graph' ? genieContract : genieRowsContract };
    case 'tflite':
      return { format: litertFormat, contract: PROFILE_CONTRACTS[profile] };
  }
}
