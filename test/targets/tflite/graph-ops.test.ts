import { describe, expect, it } from 'vitest';
import { parseModule } from '../../../compiler/ir/text.ts';
import { TensorType } from '../../../targets/tflite/schema-enums.ts';
import { computed, FORMS, formText } from './graph-forms.ts';
import { type FormScheme, runBoth } from './run-graph.ts';

/** Most that LiteRT may differ from ONNX Runtime: of the largest magnitude for floats, steps of the output for integers. */
const LIMITS: Readonly<Record<FormScheme, number>> = { float: 1e-5, w8a8: 1, w8a16: 2 };

/** The type of activations. */
const INTEGER = { float: undefined, w8a8: TensorType.INT8, w8a16: TensorType.INT16 } as const;

/** Forms of many roundings, and one whose slope multiplies the step by which its operand may differ. */
const CHAINS: Readonly<Record<string, Partial<Record<FormScheme, number>>>> = {
  InstanceNormalization: { w8a8: 2 },
  'Pow, 3': { w8a16: 3 },
  GRU: { w8a16: 3 },
};

describe.each(['float', 'w8a8', 'w8a16'] as const)(
  'a graph in %s is in LiteRT what it is in ONNX Runtime',
  (scheme) => {
    it.each(Object.keys(FORMS))('%s', async (name) => {
      const body = scheme === 'float' ? FORMS[name]! : computed(FORMS[name]!);
      const { worst, lowered } = await runBoth(parseModule(formText(body)), scheme);
      const integer = lowered.model.subgraphs[0]!.tensors.some(({ type }) => type === INTEGER[scheme]);
      expect(integer).toBe(scheme !== 'float');
      expect(worst).toBeLessThanOrEqual(CHAINS[name]?.[scheme] ?? LIMITS[scheme]);
    });
  },
);
