import { type GivenEncodings, readEncodings } from '../calibration/read-encodings.ts';
import type { Recipe } from '../calibration/recipe.ts';
import { NpucError } from '../compiler/errors.ts';
import type { EncodingsVersion } from '../targets/onnx/encodings-json.ts';
import type { TargetName } from '../targets/target.ts';
import type { CompileConfig } from './config.ts';

/** What is written beside the artifacts, and which encodings were not calibrated. */
export interface OutputOptions {
  /** A DLC file of every HTP graph. */
  readonly dlc: boolean;
  /** Version of AIMET's encodings file beside ONNX artifacts. */
  readonly encodings: EncodingsVersion;
  /** Encodings to use in the place of calibrated ones. */
  readonly given?: GivenEncodings;
}

/** @throws CL001 for what does not go together, QT132 early, IO001 and QT130 for the file of encodings */
export function outputOptions(config: CompileConfig, targets: readonly TargetName[], recipe: Recipe): OutputOptions {
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
  if (encodingsIn === undefined) return { dlc, encodings };
  if (recipe.scheme === 'fp16') {
    throw new NpucError('CL001', {
      message: '--encodings-in has nothing to encode: --scheme fp16 has no integers',
      hint: 'choose an integer scheme, such as --scheme w8a16',
    });
  }
  return { dlc, encodings, given: readEncodings(encodingsIn) };
}
