/**
 * The vendor's error numbers in plain words, with its own name where it has one (QnnCommon.h, QnnOpPackage.h, QnnContext.h,
 * QnnGraph.h: a thousand for each header). What a number really stands for on HTP was measured by provoking it.
 */
const QNN_CODES: Readonly<Record<number, { readonly name?: string; readonly means: string }>> = {
  1000: { name: 'QNN_COMMON_ERROR_NOT_SUPPORTED', means: 'this build of the vendor library cannot do that' },
  1002: {
    name: 'QNN_COMMON_ERROR_MEM_ALLOC',
    means:
      'an operator has no implementation in this form, or its tiles do not fit the on-chip memory (VTCM); the vendor reports both as out of memory',
  },
  3110: {
    name: 'QNN_OP_PACKAGE_ERROR_VALIDATION_FAILURE',
    means: 'the HTP has no such operator with these types, ranks or attributes',
  },
  5000: {
    name: 'QNN_CONTEXT_ERROR_INVALID_ARGUMENT',
    means: 'the binary was made by a newer toolchain, or for another SoC',
  },
  5004: { name: 'QNN_CONTEXT_ERROR_BINARY_VERSION', means: 'the binary was made by a newer toolchain' },
  5005: { name: 'QNN_CONTEXT_ERROR_CREATE_FROM_BINARY', means: 'the binary is damaged, or for another SoC' },
  6001: { name: 'QNN_GRAPH_ERROR_INVALID_ARGUMENT', means: 'the graph was run with tensors that it does not have' },
  6004: { name: 'QNN_GRAPH_ERROR_INVALID_TENSOR', means: 'a tensor has a shape or type that the graph does not take' },
  6020: { name: 'QNN_GRAPH_ERROR_CREATE_FAILED', means: 'the graph could not be begun' },
  6021: { name: 'QNN_GRAPH_ERROR_OPTIMIZATION_FAILED', means: 'the graph compiler gave up while optimizing' },
  6022: { name: 'QNN_GRAPH_ERROR_FINALIZE_FAILED', means: 'the graph compiler gave up at the end' },
  6031: {
    name: 'QNN_GRAPH_ERROR_ABORTED',
    means: 'the run was ended from outside: the graph was accepted and cannot be executed in this form',
  },
  7004: { means: 'a tensor of the graph cannot be made for this SoC, as with an option that only a newer one has' },
  30010: { means: 'the file is no context binary that the reader knows: damaged, or for several SoCs at once' },
};

/** `the HTP has no such operator ... (QNN 3110, QNN_OP_PACKAGE_...)`; undefined for a number that is not known. */
export function explainQnnCode(code: number): string | undefined {
  const known = QNN_CODES[code];
  return known && `${known.means} (QNN ${code}${known.name ? `, ${known.name}` : ''})`;
}

// `Error: 1002`, `error code 3110`, `Code: 5000`, `status 0x3ea`, `getBinaryInfo 0x753a`, `err 1002`.
const NUMBER = /(?:error|code|status|err|getBinaryInfo):? (?:code:? )?(0x[0-9a-f]+|\d{4,5})\b/gi;

/** What the first vendor error in a text means; undefined when there is none that is known. */
export function explainQnnText(text: string): string | undefined {
  for (const [code, { name, means }] of Object.entries(QNN_CODES)) {
    if (name && text.includes(name)) return `${means} (QNN ${code}, ${name})`;
  }
  for (const [, number] of text.matchAll(NUMBER)) {
    const said = explainQnnCode(Number(number));
    if (said) return said;
  }
  return undefined;
}
