// What every script asks for, and what the answers have to hold.
import assert from "node:assert/strict";
import { z } from "zod";

export const BASE = process.argv[2] + "/v1";
export const QUESTION = "Where is the bakery?";
export const ANSWER = /Gull Street/;
export const Order = z.object({
  what: z.enum(["honey cake", "rope"]),
  number: z.number().int().min(1).max(9),
});

export function checkOrder(order) {
  assert.deepEqual(Order.parse(order), order);
}
