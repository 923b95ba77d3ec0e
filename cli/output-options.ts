import { type GivenEncodings, readEncodings } from '../calibration/read-encodings.ts';
import { hasFloatActivations, type Recipe } from '../calibration/recipe.ts';
import { NpucError } from '../compiler/errors.ts';
import type { EncodingsVersion } from '../targets/onnx/encodings-json.ts';
import type { Soc } from '../targets/socs.ts';
import type { TargetName } from '../targets/target.ts';
import { checkNpu, type NpuOptions } from '../targets/tflite/npu/compile-npu.ts';
import { parseNpu } from '../targets/tflite/npu/vendors.ts';
import type { CompileConfig } from './config.ts';

/** What is written beside the artifacts, and which encodings were not calibrated. */
export interface OutputOptions {
  /** A DLC file of every HTP graph. */
  readonly dlc: boolean;
  /** Version of AIMET's encodings file beside ONNX artifacts. */
  readonly encodings: EncodingsVersion;
  /** Encodings to use in the place of calibrated ones. */
  readonly given?: GivenEncodings;
  /** NPUs that LiteRT's plugins compile the TFLite file for. */
  readonly npu?: NpuOptions;
}

/** @throws CL001 for what does not go together, QT132 early, IO001 and QT130 for the file of encodings, and as npuOptions */
export function outputOptions(
  config: CompileConfig,
  targets: readonly TargetName[],
  recipe: Recipe,
  soc: Soc,
): OutputOptions {
  const { dlc, encodings, encodingsIn } = config;
  if (dlc && !targets.includes('qnn')) {
    throw new NpucError('CL001', {
      message: '--dlc is for the qnn target, which is not asked for',
      hint: 'add --target qnn',
    });
  }
  if (encodings === '0.6.1' && recipe.weight.block > 0 && targets.includes('onnx')) {
    throw new NpucError('QT132', {
      message: `version 0.6.1 of the encodings file has no blocks, and ${recipe.scheme} has blocks of ${recipe.weight.block}`,
      hint: '--encodings 1.0, or weights without blocks: --block 0',
    });
  }
  const npu = npuOptions(config, targets, soc);
  const plain = { dlc, encodings, ...(npu ? { npu } : {}) };
  if (encodingsIn === undefined) return plain;
  if (hasFloatActivations(recipe)) {
    throw new NpucError('CL001', {
      message: `--encodings-in has nothing to encode: the activations of --scheme ${recipe.scheme} are floats`,
      hint: 'choose a scheme with integer activations, such as --scheme w8a16',
    });
  }
  return { ...plain, given: readEncodings(encodingsIn) };
}

/** @throws CL001, TG001 for vendors and SoCs, QN001, QN002 and TF303 for what is missing */
function npuOptions(
  { npu, npuClaims, npuSdk, profile }: CompileConfig,
  targets: readonly TargetName[],
  soc: Soc,
): NpuOptions | undefined {
  if (npu.length === 0) {
    if (!npuClaims && npuSdk === undefined) return undefined;
    throw new NpucError('CL001', { message: '--npu-claims and --npu-sdk are about --npu, which is not given' });
  }
  if (!targets.includes('tflite')) {
    throw new NpucError('CL001', {
      message: '--npu is for the tflite target, which is not asked for',
      hint: 'add --target tflite',
    });
  }
  if (profile === 'litert-lm') {
    throw new NpucError('CL001', {
      message:
        '--npu has nothing to compile: graphs of --profile litert-lm update their caches, which no plugin takes whole',
      hint: '--profile npu, or mediatek',
    });
  }
  const requests = [...new Map(npu.map((text) => parseNpu(text, soc)).map((each) => [describe(each), each])).values()];
  const options: NpuOptions = { requests, claims: npuClaims, ...(npuSdk === undefined ? {} : { sdk: npuSdk }) };
  checkNpu(options);
  return options;
}

const describe = ({ vendor, soc }: { vendor: string; soc: string }): string => `${vendor}:${soc}`;
