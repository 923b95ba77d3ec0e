import { expect, test } from 'vitest';
import { explainQnnText } from '../../../compiler/runtime/qnn-codes.ts';

test.each<[string, RegExp | undefined]>([
  // As ONNX Runtime's QNN plugin, the vendor's compiler and our own reader write them.
  [
    'Failed to finalize QNN graph. Error: QNN_COMMON_ERROR_MEM_ALLOC: Memory ..., Code: 1002',
    /on-chip memory.*QNN 1002/,
  ],
  ['QnnDsp <E> Failed to finalize graph (id: 1) with err 1002', /QNN 1002/],
  ['QnnBackend_validateOpConfig failed with error code 3110', /no such operator.*QNN 3110/],
  ['<I> QnnGraph_finalize done. status 0x3ea', /QNN 1002/],
  ['Failed to create context from binary. Error: QNN_CONTEXT_ERROR_INVALID_ARGUMENT: An argument', /newer.*QNN 5000/],
  ['QNN graph execute error. Error code: 6031', /accepted and cannot be executed.*QNN 6031/],
  ['it is not an HTP context binary (QnnSystemContext_getBinaryInfo 0x753a)', /no context binary.*QNN 30010/],
  ['Error code: 4242', undefined],
  ['the node of 1002 channels', undefined],
])('%s', (text, means) => {
  if (means) expect(explainQnnText(text)).toMatch(means);
  else expect(explainQnnText(text)).toBeUndefined();
});
