import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { encode } from 'flatbuffers/js/flexbuffers.js';
import koffi from 'koffi';
import { expect, test } from 'vitest';
import { NpucError } from '../../../../compiler/errors.ts';
import { listSocs } from '../../../../targets/socs.ts';
import { parseErrors, parseRefusals } from '../../../../targets/tflite/npu/parse-plugin-log.ts';
import { readFlexMap } from '../../../../targets/tflite/npu/read-flex-map.ts';
import { parseNpu } from '../../../../targets/tflite/npu/vendors.ts';
import { type ElfSymbol, writeElf } from '../../../../targets/tflite/npu/write-elf.ts';

const isLinux = process.platform === 'linux' && process.arch === 'x64';

test.skipIf(!isLinux)('the loader takes a written library, calls its code and writes its data', () => {
  const folder = mkdtempSync(join(tmpdir(), 'npuc-elf-'));
  try {
    const symbols: ElfSymbol[] = [
      // lea eax, [rdi + rsi]; ret
      { name: 'sum', kind: 'function', bytes: Uint8Array.of(0x8d, 0x04, 0x37, 0xc3) },
      { name: 'number', kind: 'object', bytes: Uint8Array.of(5, 0, 0, 0) },
      // mov eax, 7; ret
      { name: 'seven', kind: 'function', bytes: Uint8Array.of(0xb8, 7, 0, 0, 0, 0xc3) },
    ];
    const bytes = writeElf('libsum.so', symbols);
    expect(writeElf('libsum.so', symbols)).toEqual(bytes);
    writeFileSync(join(folder, 'libsum.so'), bytes);
    const library = koffi.load(join(folder, 'libsum.so'));
    expect(library.func('sum', 'int', ['int', 'int'])(3, 4)).toBe(7);
    expect(library.func('seven', 'int', [])()).toBe(7);
    const number = library.symbol('number', 'int');
    expect(koffi.decode(number, 'int')).toBe(5);
    koffi.encode(number, 'int', 9);
    expect(koffi.decode(number, 'int')).toBe(9);
    // A library without symbols, as the one that Qualcomm's plugin is linked with.
    writeFileSync(join(folder, 'libempty.so'), writeElf('libempty.so'));
    expect(() => koffi.load(join(folder, 'libempty.so'))).not.toThrow();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test('options of a partition are read at every width', () => {
  for (const offset of [8, 300, 70000, 2 ** 33]) {
    const bytes = encode({ bytecode_offset: offset, bytecode_size: 12, name: 'p_0' });
    expect(Object.fromEntries(readFlexMap(bytes))).toEqual({ bytecode_offset: offset, bytecode_size: 12, name: 'p_0' });
  }
  expect(readFlexMap(Uint8Array.of(0, 0, 1)).size).toBe(0);
});

test('damaged options are coded errors, never a crash or a loop', () => {
  const whole = encode({ bytecode_offset: 70000, bytecode_size: 12, name: 'qnn_partition_0' });
  let refused = 0;
  for (let at = 0; at < whole.length; at++) {
    for (const value of [0, 1, 0x7f, 0xff]) {
      const damaged = whole.slice();
      damaged[at] = value;
      try {
        readFlexMap(damaged);
      } catch (error) {
        expect(error).toBeInstanceOf(NpucError);
        expect((error as NpucError).code).toBe('IO003');
        refused++;
      }
    }
    try {
      readFlexMap(whole.subarray(0, at));
    } catch (error) {
      expect((error as NpucError).code).toBe('IO003');
    }
  }
  expect(refused).toBeGreaterThan(20);
});

const STDERR = `INFO: [compiler_plugin.cc:524] Partition strategy: 0
ERROR: [qnn_manager.cc:480] 
QNN op validation failed: 'DepthWiseConv2d_5' (type=DepthWiseConv2d)
  Inputs:
    [0] name="0_litert_8" dtype=QNN_DATATYPE_SFIXED_POINT_16 dims=[1,120,160,16] per-tensor-quant
    [1] name="5_qnn" dtype=QNN_DATATYPE_SFIXED_POINT_8 dims=[3,3,1,16] per-channel-quant
  Outputs:
    [0] name="3_qnn" dtype=QNN_DATATYPE_SFIXED_POINT_16 dims=[1,120,160,16] per-tensor-quant

ERROR: [qnn_compiler_plugin.cc:538] 
LiteRT Op #4 'DepthwiseConv2d' (code=4) is not supported in Qualcomm Compiler.
  Inputs:
    [0] name="serving_default/247"  tensor_idx=8
  Outputs:
    [0] name="serving_default/250"  tensor_idx=11
ERROR: [qnn_compiler_plugin.cc:538] 
LiteRT Op #7 'Exp' (code=47) is not supported in Qualcomm Compiler.
  Inputs:
    [0] name="serving_default/250"  tensor_idx=11
  Outputs:
    [0] name="serving_default/exp"  tensor_idx=12
ERROR: [qnn_manager.cc:480] 
QNN op validation failed: 'ElementWiseUnary_0' (type=ElementWiseUnary, operation=Exp)
  Inputs:
    [0] name="serving_default_x" dtype=QNN_DATATYPE_SFIXED_POINT_8 dims=[1,8,16] per-tensor-quant
ERROR: [qnn_compiler_plugin.cc:538] 
LiteRT Op #9 'Exp' (code=47) is not supported in Qualcomm Compiler.
  Outputs:
    [0] name="serving_default/y"  tensor_idx=1
ERROR: [openvino_compiler_plugin.cc:714] Exception in compilation: Check failed at a.cpp:18:
Arguments do not have the same element type.
ERROR: [apply_plugin.cc:455] ERROR: [litert/compiler/plugin/compiler_plugin.cc:504]
INFO: [accelerator_registry.cc:43] DestroyAccelerator
`;
const STDOUT = `     0.0ms [ ERROR ]   <E> Unsupported input/output datatypes requested for the HTP Op 'DepthWiseConv2d' in the node 'DepthWiseConv2d_5'. There is a mismatch.
     0.0ms [ ERROR ]   <E> Failed to validate op DepthWiseConv2d_5 with error 0xc26
`;

test("a plugin's log says why an operator stays on the CPU", () => {
  const refusals = parseRefusals(STDERR, STDOUT);
  expect([...refusals.keys()]).toEqual(['serving_default/250', 'serving_default/exp', 'serving_default/y']);
  expect(refusals.get('serving_default/y')).toBe('the HTP has no Exp of these types (inputs i8[1,8,16])');
  expect(refusals.get('serving_default/250')).toBe(
    "Unsupported input/output datatypes requested for the HTP Op 'DepthWiseConv2d'. There is a mismatch. " +
      '(inputs i16[1,120,160,16], i8[3,3,1,16])',
  );
  // The validation before it was another operator's.
  expect(refusals.get('serving_default/exp')).toBe('the plugin has no form for it');
  expect(parseRefusals(STDERR, '').get('serving_default/250')).toMatch(
    /^the HTP has no DepthWiseConv2d of these types/,
  );
  expect(parseErrors(STDERR)).toEqual([
    'Exception in compilation: Check failed at a.cpp:18:\nArguments do not have the same element type.',
  ]);
});

test('vendors and their SoCs', () => {
  const soc = listSocs().find(({ name }) => name === 'SM8650')!;
  expect(parseNpu('qualcomm', soc)).toEqual({ vendor: 'qualcomm', soc: 'SM8650' });
  expect(parseNpu('Qualcomm:sm8850', soc)).toEqual({ vendor: 'qualcomm', soc: 'SM8850' });
  expect(parseNpu('openvino', soc)).toEqual({ vendor: 'openvino', soc: 'LNL' });
  expect(parseNpu('mediatek:MT6991', soc)).toEqual({ vendor: 'mediatek', soc: 'mt6991' });
  expect(() => parseNpu('qualcom', soc)).toThrow(
    expect.objectContaining({ code: 'CL001', hint: 'did you mean qualcomm?' }),
  );
  // Its plugin compiles for any name.
  expect(() => parseNpu('openvino:XYZ', soc)).toThrow(expect.objectContaining({ code: 'TG001' }));
  expect(() => parseNpu('qualcomm:QCS6490', soc)).toThrow(expect.objectContaining({ code: 'TG001' }));
});
