import { expect, test } from 'vitest';
import * as npuc from '../index.ts';

test('the public names are these: a change is a change of the contract', () => {
  expect(Object.keys(npuc).sort()).toMatchInlineSnapshot(`
    [
      "DecoderSession",
      "Graph",
      "Module",
      "Node",
      "NpucError",
      "OPS",
      "SCHEMES",
      "Tensor",
      "Value",
      "compileDecoder",
      "createProgress",
      "decodeOnnx",
      "defineOp",
      "encodeOnnx",
      "evaluateGraph",
      "findOp",
      "findSoc",
      "findToolchain",
      "formatError",
      "freezeShapes",
      "generateGreedy",
      "generateTokens",
      "inferShapes",
      "installToolchain",
      "listSocs",
      "makeRecipe",
      "openCheckpoint",
      "openCompiled",
      "openOnnx",
      "parseModule",
      "printModule",
      "readManifest",
      "runPasses",
      "simplify",
      "verify",
      "writeOnnx",
    ]
  `);
});
