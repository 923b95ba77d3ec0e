/**
 * Coded errors. Every failure a user can cause has a stable code; the first letter group says the area:
 * IO files and formats, IM import, IR graph, PS passes, QT quantization, TG targets, QN QNN/HTP, TF TFLite, RT runtimes,
 * CK quality checks, CL command line, HB hub, SW sweeps, XX ours.
 */
export const ERROR_TITLES = {
  CK001: 'baseline cannot be read',
  CK002: 'baseline is not well formed',
  CK003: 'baseline is of something else',
  CK004: 'measured figure is not a number',
  CK005: 'the two sides cannot be compared',
  CL001: 'invalid command line',
  CL002: 'invalid configuration file',
  CL003: 'output folder is not ours',
  HB001: 'name of a hub model is malformed',
  HB002: 'no such model on the hub',
  HB003: 'access to the hub model is denied',
  HB004: 'hub cannot be reached',
  HB005: 'download is broken',
  HB006: 'model is not in the cache, and offline',
  HB007: 'another process is downloading the model',
  IM101: 'safetensors header contradicts itself',
  IM102: 'tensor has an unknown element type',
  IM103: 'index of the shards is wrong',
  IM110: 'no checkpoint there',
  IM111: 'checkpoint has no safetensors',
  IM301: 'ONNX version is not supported',
  IM302: 'ONNX model is not well formed',
  IM303: 'name is defined twice',
  IM304: 'name is not defined',
  IM305: 'graph has a cycle',
  IM306: 'tensor does not fit its data',
  IM307: 'external data lies outside the folder of the model',
  IM308: 'external data cannot be used',
  IM120: 'GGUF header contradicts itself',
  IM121: 'GGUF tensor type is not supported',
  IM122: 'GGUF model cannot be translated',
  IM130: 'tokenizer does not fit the vocabulary',
  IM131: 'tokenizer is not usable',
  IM133: 'chat template cannot be applied',
  IM401: 'architecture is not supported',
  IM402: 'config.json is not usable',
  IM403: 'tensor is missing',
  IM404: 'tensor does not fit the configuration',
  IM405: 'quantized weights cannot be taken over',
  IM410: 'cache is not larger than the tokens',
  IM411: "cache is above the checkpoint's positions",
  IO001: 'file cannot be read',
  IO002: 'file cannot be written',
  IO003: 'file is truncated or malformed',
  IO004: 'model does not fit in one file',
  IR020: 'shapes do not fit',
  IR021: 'operator input is missing or of the wrong type',
  IR022: 'operator attribute is invalid',
  IR101: 'text form cannot be read',
  IR102: 'name in the text form is not defined, or defined twice',
  IR103: 'data is not in the text form',
  IR201: 'module breaks the rules of the IR',
  PS101: 'pass broke the rules of the IR',
  PS102: 'pass did not keep its contract',
  PS103: 'pass changed what a graph computes',
  PS110: 'dimension has no length',
  PS111: 'length does not fit the graph',
  PS112: 'shape depends on data',
  PS120: 'local functions call each other in a circle',
  QN001: 'toolchain is not installed',
  QN002: 'toolchain cannot run on this machine',
  QN003: 'vendor licence is not accepted',
  QN004: 'toolchain cannot be downloaded',
  QN005: 'downloaded file is not the pinned one',
  QN006: 'toolchain is damaged or of another version',
  QN010: 'graph is not taken whole by the HTP',
  QN011: 'HTP compiler failed',
  QN012: 'compiled for another SoC',
  QN013: 'binary differs from what was asked for',
  QN014: 'context binary cannot be read',
  QN015: 'artifact is newer than the toolchain',
  QN016: 'toolchain fails its self-test',
  QN017: 'model cannot be cut as asked',
  QN020: 'model cannot be bundled for Genie',
  QN021: 'Genie bundle contradicts itself',
  QN022: 'Genie refuses the bundle',
  QN023: 'Genie writes another text',
  RT010: 'operator has no reference semantics',
  RT011: 'graph input is missing or of the wrong type',
  QT010: 'value is not finite',
  QT011: 'value does not fit half floats',
  QT012: 'scale is not a positive number',
  QT013: 'importance is not a non-negative number',
  QT014: 'integer does not fit int4',
  QT015: 'row is too long',
  QT016: 'kernel worker failed',
  QT017: 'second moments are not positive definite',
  QT101: 'recipe is not valid',
  QT102: 'override is not a regular expression',
  QT103: 'value has no encoding',
  QT104: 'block does not divide the input channels',
  QT110: 'text is too short',
  QT120: 'samples do not fit the model',
  QT121: 'model is not in 32-bit floats',
  QT130: 'encodings file is not well formed',
  QT131: 'encodings do not fit the model',
  QT132: 'encodings file cannot say this form',
  QT133: 'target cannot hold the integers of the checkpoint',
  QT140: 'budget cannot be met',
  QT150: 'compiling needs more memory than allowed',
  RT101: 'graph does not follow its protocol',
  RT102: 'cache is full',
  RT103: 'prompt is empty',
  RT104: 'no graph has that cache size',
  RT105: 'cache cannot slide so',
  RT110: 'runtime refuses the model',
  RT111: 'runtime failed',
  RT112: 'logits are not finite',
  RT201: 'native runtime cannot be started',
  RT202: 'native process died',
  RT203: 'native process needs more memory than allowed',
  TF201: 'op has no TFLite lowering',
  TF202: 'type has no TFLite form',
  TF401: 'model cannot be bundled for LiteRT-LM',
  TF402: 'LiteRT-LM bundle contradicts itself',
  TF403: 'LiteRT-LM refuses the bundle',
  TF404: 'LiteRT-LM writes another text',
  SW001: 'budget of a sweep cannot be read',
  SW002: 'budget has nothing to choose from',
  SW003: 'another sweep works in the folder',
  SW004: 'folder is not a sweep of this npuc',
  SW005: 'queue cannot be reached',
  SW006: 'worker died',
  SW007: 'BullMQ is not installed',
  SW008: 'artifact in the store is not what its digest says',
  SW009: 'worker does not have what the sweep was planned with',
  TG001: 'unknown SoC',
  TG002: 'SoC lacks a feature',
  TG101: 'encoding cannot be written to ONNX',
  TF101: 'TFLite tensor names are not unique',
  TF102: 'TFLite signature does not match its subgraph',
  TF103: 'TFLite model contradicts itself',
  TF104: 'compiled TFLite file cannot be rewritten',
  TF105: 'TFLite file needs a newer schema',
  TF301: "vendor's plugin takes no operator",
  TF302: "vendor's plugin failed",
  TF303: "vendor's library is missing",
  TG110: 'no compiled model',
  TG111: 'artifact is missing or changed',
  XX001: 'internal error',
} as const satisfies Record<string, string>;

export type ErrorCode = keyof typeof ERROR_TITLES;

export interface ErrorDetails {
  /** One sentence: what went wrong, with the offending value. */
  message: string;
  /** Where: a file, node or value name in the user's own model. */
  where?: string;
  /** What the user can do about it. */
  hint?: string;
  /** Process exit code: 2 the user's input (default), 1 findings, 70 ours. */
  exitCode?: 1 | 2 | 70;
  cause?: unknown;
}

/** An error with a stable code; the command line prints it without a stack trace. */
export class NpucError extends Error {
  readonly code: ErrorCode;
  readonly where: string | undefined;
  readonly hint: string | undefined;
  readonly exitCode: number;

  constructor(code: ErrorCode, details: ErrorDetails) {
    super(details.message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'NpucError';
    this.code = code;
    this.where = details.where;
    this.hint = details.hint;
    this.exitCode = details.exitCode ?? (code === 'XX001' ? 70 : 2);
  }
}

/** The lines a user reads: `CODE what`, then `at where`, then `hint: what to do`. */
export function formatError(error: NpucError): string {
  const lines = [`${error.code} ${error.message}`];
  if (error.where) lines.push(`  at ${error.where}`);
  if (error.hint) lines.push(`  hint: ${error.hint}`);
  return lines.join('\n');
}
